"use strict";
const facts = JSON.parse(document.getElementById("facts").textContent);
const find = (id) => document.getElementById(id);
const thresholds = [...document.querySelectorAll(".threshold")];
const element = (tag, properties) => Object.assign(document.createElement(tag), properties);
// What is asked: of the frame or image that was chosen last, at the sliders' thresholds or the model's own.
let image = null, own = true, waiting = false, changed = false;

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
  const question = { frame, image: image ?? "", dense, thresholds: own || dense ? [] : thresholds.map((one) => Number(one.value)) };
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

function move(values) {
  thresholds.forEach((slider, number) => {
    slider.value = values[number];
    slider.nextElementSibling.textContent = Number(slider.value).toFixed(2);
  });
}

find("controls").addEventListener("submit", (event) => event.preventDefault());
find("file").addEventListener("change", (event) => { if (event.target.files[0]) take(event.target.files[0]); });
find("frame")?.addEventListener("input", () => { image = null; ask(); });
find("dense")?.addEventListener("input", ask);
find("own")?.addEventListener("click", () => { own = true; move(facts.thresholds); ask(); });
for (const slider of thresholds)
  slider.addEventListener("input", () => {
    own = false;
    slider.nextElementSibling.textContent = Number(slider.value).toFixed(2);
    ask();
  });
document.addEventListener("dragover", (event) => { event.preventDefault(); document.body.classList.add("dropping"); });
document.addEventListener("dragleave", () => document.body.classList.remove("dropping"));
document.addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("dropping");
  if (event.dataTransfer.files[0]) take(event.dataTransfer.files[0]);
});
ask();
