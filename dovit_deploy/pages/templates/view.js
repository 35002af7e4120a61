"use strict";
const facts = JSON.parse(document.getElementById("facts").textContent);
const find = (id) => document.getElementById(id);
const thresholds = [...document.querySelectorAll(".threshold")];
const element = (tag, properties) => Object.assign(document.createElement(tag), properties);
// What is asked: of the frame or image that was chosen last, at the thresholds of the sliders that were moved.
let image = null, waiting = false, changed = false;
// A slider has steps; where it was not moved, the model's own threshold is meant, exactly.
const moved = new Set();

const complain = (text) => { find("error").textContent = text; };

async function post(what, body) {
  let response;
  try {
    response = await fetch(what, { method: "POST", body });
  } catch {
    throw new Error("dovit view does not answer; has it ended?");
  }
  const content = await response.json();
  if (!response.ok) throw new Error(content.error);
  return content;
}

// One question at a time; what changed meanwhile is asked for next.
async function ask() {
  if (waiting) { changed = true; return; }
  const frame = image === null && find("frame") ? Number(find("frame").value) : null;
  if (frame === null && image === null) return;
  waiting = true;
  find("answer").dataset.busy = "";
  const dense = find("dense") ? find("dense").checked : false;
  const asked = thresholds.map((one, number) => moved.has(one) ? Number(one.value) : facts.thresholds[number]);
  const question = { frame, image: image ?? "", dense, thresholds: dense || !moved.size ? [] : asked };
  try {
    draw(await post("answer", JSON.stringify(question)));
    complain("");
  } catch (error) {
    complain(error.message);
  }
  delete find("answer").dataset.busy;
  waiting = false;
  if (changed) { changed = false; ask(); }
}

function fact(name, value, note) {
  const box = element("div", {}), written = element("dd", { textContent: value });
  written.append(element("small", { textContent: note }));
  box.append(element("dt", { textContent: name }), written);
  return box;
}

function keyed(entries, written) {
  return entries.map((entry) => {
    const line = element("li", {}), colour = element("i", {});
    colour.style.background = entry.color;
    line.append(colour, written(entry));
    return line;
  });
}

function draw(answer) {
  const percent = (value) => `${(100 * value).toFixed(1)} %`;
  find("name").textContent = answer.name;
  if (image === null) find("frame")?.setAttribute("aria-valuetext", answer.name);
  find("hint").textContent = "";
  const figures = [
    fact("FLOPs saved", percent(answer.flops_saved), `${answer.gmacs.actual.toFixed(2)} of ${answer.gmacs.dense.toFixed(2)} GMACs`),
    fact("model step", `${answer.model_ms.toFixed(1)} ms`, "one run, on this machine"),
    fact("tokens that run to the end", String(answer.kept[answer.kept.length - 1]), answer.kept.join(" → ")),
  ];
  if (answer.top) figures.push(fact(answer.top[0].name, percent(answer.top[0].probability), answer.top.slice(1).map((one) => `${one.name} ${percent(one.probability)}`).join(", ")));
  find("figures").replaceChildren(...figures);
  find("pictures").replaceChildren(...answer.pictures.map((picture) => {
    const figure = element("figure", { className: "picture" });
    figure.append(element("img", { src: picture.address, alt: `${picture.name} of ${answer.name}` }), element("figcaption", { textContent: picture.name }));
    return figure;
  }));
  find("key").replaceChildren(...keyed(answer.key, (entry) => entry.name));
  find("classes").replaceChildren(...keyed(answer.classes, (entry) => `${entry.name} ${percent(entry.share)}`));
  find("answer").hidden = false;
}

async function take(file) {
  try {
    image = (await post("image", file)).image;
    ask();
  } catch (error) {
    complain(error.message);
  }
}

// Of thresholds moves something only where tokens stop.
function askWithThresholds() {
  if (find("dense")) find("dense").checked = false;
  ask();
}

find("controls").addEventListener("submit", (event) => event.preventDefault());
find("file").addEventListener("change", (event) => { if (event.target.files[0]) take(event.target.files[0]); });
// A click where the slider stands already leads back from an image, too.
for (const event of ["input", "click"])
  find("frame")?.addEventListener(event, () => { image = null; ask(); });
find("dense")?.addEventListener("input", ask);
thresholds.forEach((slider, number) => {
  const write = (value) => { slider.nextElementSibling.textContent = String(Number(value.toFixed(4))); };
  slider.addEventListener("input", () => { moved.add(slider); write(Number(slider.value)); askWithThresholds(); });
  find("own").addEventListener("click", () => { slider.value = facts.thresholds[number]; write(facts.thresholds[number]); });
});
// After those of the sliders.
find("own")?.addEventListener("click", () => { moved.clear(); askWithThresholds(); });
document.addEventListener("dragover", (event) => { event.preventDefault(); document.body.classList.add("dropping"); });
document.addEventListener("dragleave", () => document.body.classList.remove("dropping"));
document.addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("dropping");
  if (event.dataTransfer.files[0]) take(event.dataTransfer.files[0]);
});
ask();
