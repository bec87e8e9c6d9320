// Draws the formulas of pages that have some. MathJax lies beside this file (experiments/guide_formulas.py); nothing is fetched.
window.MathJax = {
  tex: { inlineMath: [["\\(", "\\)"]], displayMath: [["\\[", "\\]"]] },
  svg: { fontCache: "global" },
  options: { ignoreHtmlClass: ".*|", processHtmlClass: "arithmatex", enableMenu: false },
};
if (document.querySelector(".arithmatex")) {
  const script = document.createElement("script");
  script.src = new URL("tex-svg.js", document.currentScript.src).href;
  document.head.append(script);
}
