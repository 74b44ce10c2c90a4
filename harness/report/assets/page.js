// Draws every chart into its own element. The SVG renderer lets charts take the page's text colour.
const specs = JSON.parse(document.getElementById("specs").textContent);
const dark = matchMedia("(prefers-color-scheme: dark)").matches;
for (const [key, spec] of Object.entries(specs)) {
  const place = document.getElementById(key);
  spec.config.legend.columns = Math.max(2, Math.floor(place.clientWidth / 95));
  if (place.clientWidth < 420) spec.height = 300;
  vegaEmbed(place, spec, { renderer: "svg", actions: false, tooltip: { theme: dark ? "dark" : "light" } }).catch((error) => {
    place.textContent = "This chart could not be drawn (" + error.message + "); see the folder figures.";
  });
}
