(() => {
  "use strict";
  const data = document.getElementById("traces");
  if (!data) return;
  const traces = JSON.parse(data.textContent);
  const at = (id) => document.getElementById("trace-" + id);
  const [model, back, play, next, slider, status, text] =
    ["model", "back", "play", "next", "step", "status", "text"].map(at);
  let trace, spans, shown, timer = null;

  function open() {
    trace = traces[model.value];
    const length = 1 + Math.max(...trace.steps[0].map(([position]) => position));
    spans = Array.from({ length }, () => document.createElement("span"));
    text.replaceChildren(...spans);
    slider.max = trace.steps.length - 1;
    shown = -1;
    show(trace.steps.length - 1);
  }

  function write([position, token]) {
    const span = spans[position];
    span.textContent = token === null ? "▁" : token;
    span.className = token === null ? "mask" : "";
  }

  function show(step) {
    step = Math.min(Math.max(step, 0), trace.steps.length - 1);
    if (step < shown) shown = -1;
    for (let k = shown + 1; k <= step; k++) trace.steps[k].forEach(write);
    shown = step;
    for (const span of text.querySelectorAll(".new")) span.classList.remove("new");
    const last = step > 0 ? trace.steps[step] : [];
    for (const [position] of last) spans[position].classList.add("new");
    slider.value = step;
    const masks = text.querySelectorAll(".mask").length;
    const left = masks ? `, ${masks} masked` : "";
    status.textContent = `step ${step} of ${trace.steps.length - 1}, t = ${trace.times[step].toFixed(3)}${left}`;
    slider.setAttribute("aria-valuetext", status.textContent);
  }

  function pause() {
    clearInterval(timer);
    timer = null;
    play.textContent = "Play";
    play.setAttribute("aria-pressed", "false");
  }

  function start() {
    if (shown === trace.steps.length - 1) show(0);
    play.textContent = "Pause";
    play.setAttribute("aria-pressed", "true");
    timer = setInterval(() => {
      show(shown + 1);
      if (shown === trace.steps.length - 1) pause();
    }, Math.max(30, Math.min(250, 6000 / trace.steps.length)));
  }

  const jump = (step) => { pause(); show(step); };
  const toggle = () => (timer ? pause() : start());
  const keys = {
    ArrowLeft: () => jump(shown - 1), ArrowDown: () => jump(shown - 1),
    ArrowRight: () => jump(shown + 1), ArrowUp: () => jump(shown + 1),
    PageDown: () => jump(shown - 10), PageUp: () => jump(shown + 10),
    Home: () => jump(0), End: () => jump(trace.steps.length - 1), " ": toggle,
  };
  for (const element of [text, slider]) {
    element.addEventListener("keydown", (event) => {
      const act = keys[event.key];
      if (!act || event.ctrlKey || event.metaKey || event.altKey) return;
      event.preventDefault();
      act();
    });
  }
  slider.addEventListener("input", () => jump(Number(slider.value)));
  back.addEventListener("click", () => jump(shown - 1));
  next.addEventListener("click", () => jump(shown + 1));
  play.addEventListener("click", toggle);
  model.addEventListener("change", () => { pause(); open(); });
  window.addEventListener("beforeprint", () => jump(trace.steps.length - 1));
  open();
})();
