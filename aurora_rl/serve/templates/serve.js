// Ties the waveform to the video with the masks. Media events do not bubble, so they are caught on their way down.
const video = () => document.querySelector("#overlay video");
const waveform = () => document.querySelector("#waveform .aurora-waveform");

document.addEventListener("timeupdate", (event) => {
  const plot = waveform();
  if (!plot || event.target !== video()) return;
  const share = Math.min(1, event.target.currentTime / Number(plot.dataset.seconds));
  plot.querySelector(".playhead").style.left = `${100 * share}%`;
}, true);

document.addEventListener("click", (event) => {
  const plot = event.target.closest && event.target.closest("#waveform .plot");
  if (!plot || !video()) return;
  const area = plot.getBoundingClientRect();
  video().currentTime = ((event.clientX - area.left) / area.width) * Number(waveform().dataset.seconds);
});
