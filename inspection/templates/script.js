"use strict";
// A drug under the mouse or with the focus lights up its spans and its diagnoses; a click or Enter holds them.
for (const article of document.querySelectorAll("article")) {
  const marked = [...article.querySelectorAll("[data-d]")];
  let pinned = null;
  const light = (drug) => {
    const key = drug ? drug.dataset.k : null;
    for (const span of marked) span.classList.toggle("on", key !== null && span.dataset.d.split(" ").includes(key));
  };
  for (const drug of article.querySelectorAll("[data-k]")) {
    const pin = () => {
      if (pinned) pinned.classList.remove("pinned");
      pinned = pinned === drug ? null : drug;
      if (pinned) pinned.classList.add("pinned");
      light(pinned || drug);
    };
    drug.addEventListener("mouseenter", () => light(drug));
    drug.addEventListener("focusin", () => light(drug));
    drug.addEventListener("mouseleave", () => light(pinned));
    drug.addEventListener("focusout", () => light(pinned));
    drug.addEventListener("click", (event) => { if (!event.target.closest("a, summary")) pin(); });
    drug.addEventListener("keydown", (event) => { if (event.key === "Enter" && event.target === drug) pin(); });
  }
}
addEventListener("beforeprint", () => { for (const part of document.querySelectorAll("details")) part.open = true; });

// The index: rows that fit all filters, in the chosen order.
const form = document.querySelector("form");
if (form) {
  const body = document.querySelector("tbody");
  const rows = [...body.rows];
  const orders = {
    worst: (a, b) => Number(a.dataset.jaccard) - Number(b.dataset.jaccard) || a.dataset.place - b.dataset.place,
    flags: (a, b) => b.dataset.count - a.dataset.count || a.dataset.place - b.dataset.place,
    file: (a, b) => a.dataset.place - b.dataset.place,
  };
  const apply = () => {
    const id = form.id_text.value.trim(), drug = form.drug.value.trim(), flag = form.flag.value, state = form.state.value;
    let shown = 0;
    for (const row of rows) {
      const has = (list) => list.some((name) => name.includes(drug));
      const lists = { wrong: row.dataset.wrong, missed: row.dataset.missed, any: row.dataset.drugs };
      row.hidden = !(row.dataset.id.includes(id) && (!drug || has(lists[state].split("、"))) && (drug || state === "any" || lists[state])
        && (!flag || row.dataset.flags.includes(flag)));
      shown += row.hidden ? 0 : 1;
    }
    body.append(...rows.sort(orders[form.order.value]));
    document.querySelector("output").textContent = `${shown} / ${rows.length}`;
  };
  form.addEventListener("input", apply);
  form.addEventListener("submit", (event) => event.preventDefault());
  apply();
}
