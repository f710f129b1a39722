"use strict";
(() => {
  const table = document.querySelector("#pairs table");
  const body = table.tBodies[0];
  const names = (part) => Array.from(part.querySelectorAll(".name"), (e) => e.textContent);
  const searched = (part) => names(part).join("\n").toLowerCase();
  const rows = Array.from(body.rows, (row) => ({
    row,
    name: names(row)[0],
    cosine: Number(row.dataset.cosine),
    images: Number(row.dataset.images),
    text: searched(row),
  }));

  const heads = Array.from(table.querySelectorAll("th[data-key]"));
  const collator = new Intl.Collator("en", { numeric: true });
  for (const head of heads) {
    head.querySelector("button").addEventListener("click", () => {
      const sign = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
      const key = head.dataset.key;
      for (const other of heads) other.setAttribute("aria-sort", "none");
      head.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
      rows.sort((a, b) =>
        sign * (key === "name" ? collator.compare(a.name, b.name) : a[key] - b[key]));
      body.append(...rows.map((r) => r.row));
    });
  }

  const search = document.getElementById("search");
  const count = document.querySelector(".search output");
  search.addEventListener("input", () => {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const { row, text } of rows) {
      row.hidden = !words.every((word) => text.includes(word));
      shown += !row.hidden;
      for (const more of row.querySelectorAll("details")) {
        const inside = searched(more);
        more.open = words.some((word) => inside.includes(word));
      }
    }
    count.textContent = shown + " of " + rows.length + " target classes";
  });
  if (search.value) search.dispatchEvent(new Event("input")); // the browser kept it over a reload

  const cells = document.querySelector(".cells");
  if (!cells) return;
  const data = JSON.parse(document.getElementById("data").textContent);
  const size = data.targets.length;
  const bytes = Uint8Array.from(atob(data.cosines), (c) => c.charCodeAt(0));
  const thousandths = new DataView(bytes.buffer); // int16, little endian, row after row
  const told = document.querySelector("#matrix output");
  const cursor = document.createElement("div");
  cursor.className = "cursor";
  let at = [0, 0];
  const show = (row, column) => {
    at = [row, column].map((x) => Math.min(size - 1, Math.max(0, x)));
    const cosine = thousandths.getInt16(2 * (at[0] * size + at[1]), true) / 1000;
    const own = at[0] === at[1] ? " (its own pair)" : "";
    told.textContent =
      data.targets[at[0]] + " with " + data.sources[at[1]] + own + ": " + cosine.toFixed(3);
    cursor.style.top = (100 * at[0]) / size + "%";
    cursor.style.left = (100 * at[1]) / size + "%";
    cursor.style.width = cursor.style.height = 100 / size + "%";
    cells.append(cursor);
  };
  const point = (event) => {
    const box = cells.getBoundingClientRect();
    show(
      Math.floor((size * (event.clientY - box.top)) / box.height),
      Math.floor((size * (event.clientX - box.left)) / box.width));
  };
  cells.addEventListener("pointermove", point);
  cells.addEventListener("pointerdown", point);
  const steps = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
  cells.addEventListener("keydown", (event) => {
    const step = steps[event.key];
    if (!step) return;
    event.preventDefault();
    show(at[0] + step[0], at[1] + step[1]);
  });
})();
