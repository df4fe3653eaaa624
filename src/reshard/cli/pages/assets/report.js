// Findings open and close by themselves; two buttons do it for all.

const folded = [...document.querySelectorAll("details")];
if (folded.length > 1) {
  const all = (isOpen) => () => folded.forEach((each) => { each.open = isOpen; });
  folded[0].before(el("p", { class: "tools" },
    el("button", { type: "button", onclick: all(true) }, "Open all"),
    el("button", { type: "button", onclick: all(false) }, "Close all")));
}
