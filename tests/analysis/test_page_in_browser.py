"""The report of a run in a real browser: no script error, no request, numbers where one points, light and dark."""

import importlib.util
import json
import shutil

import pytest

from rl_jax.analysis import page, run

BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
  not (BROWSER and DRIVER and importlib.util.find_spec("selenium")), reason="needs chromium, chromedriver and selenium"
)
HOSTILE = '</script><script>document.title = "taken"</script><img src="http://127.0.0.1:9/x"> `${1}` "quoted"'


def opinion(first, prob):
  return [[first, prob], ["b", 0.1]]


CHANGES = {
  "answers_read": 2,
  "numbers": {
    "tokens": 3,
    "kl": 0.25,
    "rank": [0.5, 0.25, 0.25],
    "entropy": {"before": 1.0, "after": 0.5, "bins": {"edges": [0, 1, 2], "before": [1, 2], "after": [3, 0]}},
    "confidence": {"before": 0.5, "after": 0.75, "bins": {"edges": [0, 0.5, 1], "before": [2, 1], "after": [0, 3]}},
  },
  "calibration": {
    side: {
      "claimed": 0.5,
      "right": 0.25,
      "error": 0.25,
      "bins": {"claimed": [0.2, 0.8], "right": [0.0, 0.5], "count": [1, 1]},
    }
    for side in ("before", "after")
  },
  "differ": [{"context": HOSTILE, "kl": 2.0, "before": ["\n", 0.5], "after": [HOSTILE, 0.75]}],
  "answers": [
    {
      "problem": 0,
      "prompt": HOSTILE,
      "completion": HOSTILE,
      "reward": 1.0,
      "solved": True,
      "left_out": 0,
      "tokens": [
        {
          "text": text,
          "special": False,
          "logp": [-2.0, -0.5],
          "entropy": [1.0, 0.125],
          "kl": 0.375,
          "top": [opinion(HOSTILE, 0.5), opinion(text, 0.8125)],
        }
        for text in (HOSTILE, "\n", "\\xE2")
      ],
    }
  ],
  "snapshots": [{"step": 2, "kl": 1.5, "reward": 0.5}],
}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
  folder = tmp_path_factory.mktemp("page")

  def lines(name, rows):
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))

  (folder / "config.json").write_text(json.dumps({"steps": 30, "task": HOSTILE}))
  lines("metrics.jsonl", [{"step": i, "reward": i / 30, "entropy": 1 / i, "seconds": 1.0} for i in range(1, 31)])
  result = {"reward": 0.25, "solved": 1, "count": 2, "skipped": 0, "drawn": {"pass@1": 0.25, "maj@1": 0.25}}
  lines("evaluation.jsonl", [{"step": step, **result} for step in (0, 30)])
  answers = [
    {"step": step, "problem": 0, "draw": draw, "prompt": HOSTILE, "completion": HOSTILE, "reward": 0.5, "solved": True}
    for step in (0, 30)
    for draw in (0, 1, 2)
  ]
  lines("evaluation_samples.jsonl", answers)
  path = folder / "report.html"
  path.write_text(page.render(run.read(folder), CHANGES), encoding="utf-8")
  return path


@pytest.fixture(scope="module", params=["light", "dark"])
def browser(request, tmp_path_factory):
  from selenium import webdriver

  options = webdriver.ChromeOptions()
  options.binary_location = BROWSER
  scheme = 0 if request.param == "dark" else 1
  for word in (
    "headless",
    "no-sandbox",
    "disable-gpu",
    "disable-background-networking",
    "disable-component-update",
    "disable-sync",
    "no-first-run",
    "disable-dev-shm-usage",
    "window-size=900,1200",
    f"blink-settings=preferredColorScheme={scheme}",
    f"user-data-dir={tmp_path_factory.mktemp('profile')}",
  ):
    options.add_argument(f"--{word}")
  options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
  driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(executable_path=DRIVER))
  yield request.param, driver
  driver.quit()


def test_the_page_works_by_itself(written, browser):
  from selenium.webdriver.common.action_chains import ActionChains
  from selenium.webdriver.common.by import By

  scheme, driver = browser
  driver.get(written.as_uri())
  assert driver.title == f"{written.parent.name}: what it learned"  # nothing that a model wrote was run
  assert driver.get_log("browser") == []
  assert driver.execute_script("return performance.getEntriesByType('resource').length") == 0
  shade = driver.execute_script("return getComputedStyle(document.body).backgroundColor")
  assert (sum(int(part) for part in shade[4:-1].split(",")) < 200) == (scheme == "dark")
  assert HOSTILE in driver.find_element(By.CSS_SELECTOR, ".tokens").text.replace("\n", "")

  def point(element):
    driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)
    ActionChains(driver).move_to_element(element).perform()
    tip = driver.find_element(By.ID, "tip")
    assert tip.is_displayed()
    return tip.text

  charts = driver.find_elements(By.CSS_SELECTOR, "#curves ~ .charts .chart")
  told = {chart.find_element(By.TAG_NAME, "figcaption").text.splitlines()[0]: chart for chart in charts}
  said = point(told["entropy [nats]"].find_element(By.TAG_NAME, "svg"))
  step = int(said.split()[1])  # near the middle
  assert 13 <= step <= 18 and f"entropy {1 / step:.4g}" in said
  said = point(driver.find_element(By.CSS_SELECTOR, ".token"))
  assert "before" in said and "0.813" in said and "entropy 1 0.125" in said and "KL 0.375" in said
  assert "</script>" in said  # as text
  driver.find_elements(By.CSS_SELECTOR, ".token")[1].send_keys("")  # by the keyboard too
  assert driver.find_element(By.ID, "tip").is_displayed()


def test_nothing_is_wider_than_a_telephone(written, browser):
  driver = browser[1]
  driver.set_window_size(500, 900)
  driver.get(written.as_uri())
  wide = driver.execute_script("return [document.documentElement.scrollWidth, innerWidth]")
  assert wide[0] <= wide[1]
