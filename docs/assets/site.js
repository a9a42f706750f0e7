// What the theme's scripts add to a page, for those who do not see it: wide tables scroll with the keys, buttons have names.
new MutationObserver(() => {
  document.querySelectorAll(".md-typeset__scrollwrap:not([tabindex])").forEach((table) => (table.tabIndex = 0));
  document.querySelectorAll(".md-code__nav").forEach((nav, number) => nav.setAttribute("aria-label", `Code ${number + 1}`));
}).observe(document.body, { childList: true, subtree: true });
