"use strict";
const tip = document.getElementById("tip");

function show(event, element) {
  tip.replaceChildren(element);
  tip.style.display = "block";
  const wide = tip.offsetWidth, high = tip.offsetHeight;
  const left = Math.min(event.clientX + 14, innerWidth - wide - 8);
  const below = event.clientY + 16;
  tip.style.left = Math.max(left, 8) + "px";
  tip.style.top = (below + high > innerHeight ? Math.max(event.clientY - high - 12, 8) : below) + "px";
}

function hide() {
  tip.style.display = "none";
}

function table(rows) {
  const made = document.createElement("table");
  for (const row of rows) {
    const line = made.insertRow();
    for (const cell of row) line.insertCell().textContent = cell;
  }
  return made;
}

function number(value) {
  return value === undefined || value === null ? "" : Number(value.toPrecision(4)).toString();
}

for (const chart of document.querySelectorAll(".chart")) {
  const told = chart.querySelector("script");
  if (!told) continue;
  const data = JSON.parse(told.textContent);
  const svg = chart.querySelector("svg"), cursor = chart.querySelector(".cursor");
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    const at = ((event.clientX - box.left) / box.width) * svg.viewBox.baseVal.width;
    let near = 0;
    data.places.forEach((place, i) => { if (Math.abs(place - at) < Math.abs(data.places[near] - at)) near = i; });
    cursor.setAttribute("x1", data.places[near]);
    cursor.setAttribute("x2", data.places[near]);
    cursor.style.visibility = "visible";
    const x = data.x[near], rows = [[data.x_name || "", data.names ? data.names[near] : x]];
    for (const each of data.series) if (String(x) in each.of) rows.push([each.name, number(each.of[String(x)])]);
    show(event, table(rows));
  });
  svg.addEventListener("pointerleave", () => { cursor.style.visibility = "hidden"; hide(); });
}

function opinions(data) {
  const rows = [["", "before", "", "after", ""]];
  data.top[0].forEach((before, i) => {
    const after = data.top[1][i];
    rows.push([i + 1, JSON.stringify(before[0]), before[1].toFixed(3), JSON.stringify(after[0]), after[1].toFixed(3)]);
  });
  rows.push(["log-prob", "", number(data.logp[0]), "", number(data.logp[1])]);
  rows.push(["entropy", "", number(data.entropy[0]), "", number(data.entropy[1])]);
  rows.push(["KL", "", "", "", number(data.kl)]);
  return table(rows);
}

for (const token of document.querySelectorAll(".token")) {
  const data = () => JSON.parse(token.dataset.token);
  token.addEventListener("pointerenter", (event) => show(event, opinions(data())));
  token.addEventListener("pointerleave", hide);
  token.addEventListener("focus", () => {
    const box = token.getBoundingClientRect();
    show({ clientX: box.left, clientY: box.bottom }, opinions(data()));
  });
  token.addEventListener("blur", hide);
}
