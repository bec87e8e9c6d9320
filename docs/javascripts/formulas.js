// Draws the formulas of pages that have some. MathJax lies beside this file (experiments/guide_formulas.py); nothing is fetched.
window.MathJax = {
  tex: { inlineMath: [["\\(", "\\)"]], displayMath: [["\\[", "\\]"]] },
  svg: { fontCache: "global" },
  options: { ignoreHtmlClass: ".*|", processHtmlClass: "arithmatex", enableMenu: false },
};

// A comma or a bracket stays on the line of its formula.
function keep(formula) {
  const [before, after] = [formula.previousSibling, formula.nextSibling];
  const [opening, closing] = [before?.data?.match(/\S+$/), after?.data?.match(/^\S+/)];
  if (opening) {
    before.data = before.data.slice(0, opening.index);
    formula.prepend(opening[0]);
  }
  if (closing) {
    after.data = after.data.slice(closing[0].length);
    formula.append(closing[0]);
  }
}

const formulas = document.querySelectorAll(".arithmatex");
if (formulas.length) {
  document.querySelectorAll("span.arithmatex").forEach(keep);
  const script = document.createElement("script");
  script.src = new URL("tex-svg.js", document.currentScript.src).href;
  document.head.append(script);
}
