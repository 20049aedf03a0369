const root = document.documentElement, button = document.getElementById("theme");
const night = matchMedia("(prefers-color-scheme: dark)");
const dark = () => root.dataset.theme ? root.dataset.theme === "dark" : night.matches;
const name = () => {
  button.textContent = dark() ? "Light" : "Dark";
  button.setAttribute("aria-label", `Switch to ${dark() ? "light" : "dark"} colours`);
};
button.addEventListener("click", () => { root.dataset.theme = dark() ? "light" : "dark"; name(); });
night.addEventListener("change", name);
name(); button.hidden = false;

const links = new Map([...document.querySelectorAll("nav a")].map(link => [link.hash.slice(1), link]));
const watch = new IntersectionObserver(seen => seen.filter(one => one.isIntersecting).forEach(one => {
  links.forEach(link => link.removeAttribute("aria-current"));
  links.get(one.target.id)?.setAttribute("aria-current", "true");
}), { rootMargin: "-8% 0px -85% 0px" });
document.querySelectorAll("main > section[id]").forEach(section => watch.observe(section));

const open = () => {
  const at = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (at?.tagName === "DETAILS") at.open = true;
};
addEventListener("hashchange", open); open();
