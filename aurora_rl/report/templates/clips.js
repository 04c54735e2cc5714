// Filters of the gallery, and a line that runs along a clip's waveform while it plays. The page is whole without both.
const filters = document.getElementById("filters");
if (filters) {
  const clips = [...document.querySelectorAll(".clip")];
  const apply = () => {
    const wanted = new FormData(filters);
    let shown = 0;
    for (const clip of clips) {
      clip.hidden = ["reason", "type"].some((name) => wanted.get(name) && wanted.get(name) !== clip.dataset[name]);
      shown += !clip.hidden;
    }
    document.querySelector(".gallery").classList.toggle("no-masks", !wanted.has("masks"));
    filters.querySelector("output").textContent = `${shown} ${shown === 1 ? "clip" : "clips"}`;
  };
  filters.addEventListener("change", apply);
  filters.addEventListener("submit", (event) => event.preventDefault());
  filters.hidden = false;
  apply();
}
for (const audio of document.querySelectorAll("audio")) {
  const line = audio.parentElement.querySelector(".wave line");
  const follow = () => {
    const at = (240 * audio.currentTime) / audio.duration;
    line.setAttribute("x1", at);
    line.setAttribute("x2", at);
    if (!audio.paused) requestAnimationFrame(follow);
  };
  audio.addEventListener("play", () => {
    for (const other of document.querySelectorAll("audio")) if (other !== audio) other.pause();
    line.removeAttribute("hidden");
    follow();
  });
  audio.addEventListener("seeked", follow);
}
