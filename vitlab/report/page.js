// The menu on narrow screens, unfolding all code at once, and the mark in the table of contents. Without it the page still reads.
document.documentElement.classList.add("scripted");
const menu = document.querySelector("button.menu");
menu.addEventListener("click", () => {
  const open = menu.getAttribute("aria-expanded") !== "true";
  menu.setAttribute("aria-expanded", open);
  document.getElementById("chapters").classList.toggle("open", open);
});

const unfold = document.querySelector("button.unfold");
if (unfold) {
  unfold.hidden = false;
  unfold.addEventListener("click", () => {
    const open = unfold.textContent.startsWith("Show");
    document.querySelectorAll("details.code").forEach((block) => { block.open = open; });
    unfold.textContent = open ? "Hide all code" : "Show all code";
  });
}

const entries = new Map([...document.querySelectorAll(".contents a")].map((link) => [decodeURIComponent(link.hash.slice(1)), link]));
const headings = [...document.querySelectorAll("main :is(h2, h3)[id]")].filter((heading) => entries.has(heading.id));
const mark = () => {
  const above = headings.filter((heading) => heading.getBoundingClientRect().top < 120);
  entries.forEach((link) => link.removeAttribute("aria-current"));
  if (above.length) entries.get(above.at(-1).id).setAttribute("aria-current", "true");
};
addEventListener("scroll", mark, { passive: true });
mark();
