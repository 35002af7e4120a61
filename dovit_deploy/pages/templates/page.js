"use strict";
// A pointer over a timeline: the values there, by mouse, finger or arrow keys.
for (const figure of document.querySelectorAll(".timeline")) {
  const data = JSON.parse(figure.querySelector("script").textContent);
  const drawing = figure.querySelector("svg"), pointer = figure.querySelector(".pointer");
  const readout = figure.querySelector(".readout");
  let place = -1;
  const show = (next) => {
    place = Math.max(0, Math.min(data.x.length - 1, next));
    const at = data.begin + (data.x[place] - data.low) / (data.high - data.low) * (data.end - data.begin);
    pointer.setAttribute("x1", at);
    pointer.setAttribute("x2", at);
    pointer.setAttribute("visibility", "visible");
    const values = data.series.map(([name, written]) => `${name} ${written[place]}`);
    readout.textContent = `${data.labels[place]}: ${values.join(", ")}`;
  };
  const nearest = (event) => {
    const box = drawing.getBoundingClientRect();
    const x = data.low + ((event.clientX - box.left) / box.width * data.width - data.begin)
      / (data.end - data.begin) * (data.high - data.low);
    let low = 0, high = data.x.length - 1;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (data.x[middle] < x) low = middle + 1; else high = middle;
    }
    if (low > 0 && x - data.x[low - 1] < data.x[low] - x) low -= 1;
    show(low);
  };
  drawing.addEventListener("pointermove", nearest);
  drawing.addEventListener("pointerdown", nearest);
  figure.querySelector(".scroll").addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (step) {
      show(place < 0 ? 0 : place + step);
      event.preventDefault();
    }
  });
}
// Stills one at a time: which frame, what lies over the input, and where the border between the two is.
for (const stills of document.querySelectorAll(".stills")) {
  const articles = [...stills.querySelectorAll("article")];
  const pictures = articles.map((article) => [...article.querySelectorAll("img")]);
  const element = (tag, properties) => Object.assign(document.createElement(tag), properties);
  const labelled = (name, control) => {
    const label = element("label", {});
    label.append(element("span", { textContent: name }), control);
    return label;
  };
  const viewer = element("div", { className: "viewer" }), stack = element("div", { className: "stack" });
  const name = element("h4", {}), facts = element("p", {});
  const below = element("img", {}), over = element("img", { className: "over" });
  const frame = element("input", { type: "range", min: 0, max: articles.length - 1, value: 0 });
  const border = element("input", { type: "range", min: 0, max: 100, value: 50 });
  const choice = element("select", {});
  for (const caption of [...articles[0].querySelectorAll("figcaption")].slice(1))
    choice.append(element("option", { textContent: caption.textContent }));
  name.setAttribute("aria-live", "polite");
  const draw = () => {
    const shown = pictures[frame.value], top = shown[choice.selectedIndex + 1];
    name.textContent = articles[frame.value].querySelector("h4").textContent;
    facts.textContent = articles[frame.value].querySelector("p").textContent;
    frame.setAttribute("aria-valuetext", name.textContent);
    [below.src, below.alt] = [shown[0].src, shown[0].alt];
    if (top) {
      [over.src, over.alt] = [top.src, top.alt];
      over.style.clipPath = `inset(0 0 0 ${border.value}%)`;
      border.setAttribute("aria-valuetext", `${border.value} percent input`);
    }
  };
  stack.append(below);
  viewer.append(name, facts, stack);
  if (articles.length > 1) viewer.append(labelled("frame", frame));
  if (pictures[0].length > 1) {
    stack.append(over);
    viewer.append(labelled("right half", choice), labelled("border", border));
  }
  for (const control of [frame, border, choice]) control.addEventListener("input", draw);
  stills.querySelector(".frames").replaceWith(viewer);
  draw();
}
