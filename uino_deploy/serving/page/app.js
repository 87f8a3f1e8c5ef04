// The page to try a service: pictures stay in the browser until they are enrolled or segmented.

const find = (id) => document.getElementById(id);
const COLOURS = ["#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#00a5a5", "#c0a000", "#f032e6"];
const LONGEST = 2048; // pixels of a side that are marked; a mask is scaled to its picture when it is sent

const pictures = []; // {file, bitmap, answer}
const chosen = new Set(); // names of the classes to find
let classes = [];
let current = null;
let tool = "brush";
let corners = [];
let cursor = { x: 0, y: 0 };
let keyDown = false; // the brush is down by Space
let history = [];

const view = find("mark");
const drawing = view.getContext("2d");
const mask = document.createElement("canvas");
const marking = mask.getContext("2d", { willReadFrequently: true });

// --- requests

async function ask(method, path, body) {
  const token = find("token").value;
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  let answer;
  try {
    answer = await fetch(path, { method, headers, body });
  } catch {
    throw new Error("The service does not answer. Is it still running?");
  }
  if (answer.status === 401) find("ask-token").hidden = false;
  if (answer.status === 204) return null;
  const told = await answer.json().catch(() => ({ error: `The service answered ${answer.status}.` }));
  if (!answer.ok) throw new Error(told.error);
  return told;
}

function show(error) {
  find("error").textContent = error ? error.message : "";
  find("error").hidden = !error;
}

function attempt(work) {
  return async (...given) => {
    show(null);
    try {
      await work(...given);
    } catch (error) {
      show(error);
    }
  };
}

// --- pictures

const addFiles = attempt(async (files) => {
  const failed = [];
  for (const file of files) {
    try {
      pictures.push({ file, bitmap: await createImageBitmap(file), answer: null });
    } catch {
      failed.push(file.name);
    }
  }
  listPictures();
  if (current === null && pictures.length) choose(0);
  await segmentAll();
  if (failed.length) throw new Error(`This browser cannot show ${failed.join(", ")}.`);
});

function listPictures() {
  find("pictures").replaceChildren(...pictures.map((picture, index) => {
    const label = document.createElement("label");
    const input = Object.assign(document.createElement("input"), { type: "radio", name: "picture", checked: index === current });
    const image = Object.assign(document.createElement("img"), { src: URL.createObjectURL(picture.file), alt: picture.file.name });
    image.onload = () => URL.revokeObjectURL(image.src);
    input.onchange = () => choose(index);
    label.append(input, image);
    return label;
  }));
}

function choose(index) {
  current = index;
  const { bitmap, file } = pictures[index];
  const scale = Math.min(1, LONGEST / Math.max(bitmap.width, bitmap.height));
  for (const canvas of [view, mask]) {
    canvas.width = Math.round(bitmap.width * scale);
    canvas.height = Math.round(bitmap.height * scale);
  }
  cursor = { x: view.width / 2, y: view.height / 2 };
  corners = [];
  history = [];
  view.setAttribute("aria-label", `Mark one object in ${file.name}`);
  for (const [at, input] of find("pictures").querySelectorAll("input").entries()) input.checked = at === index;
  draw();
}

// --- marking

const radius = () => (Number(find("width").value) / 200) * Math.max(view.width, view.height);

function remember() {
  history.push(marking.getImageData(0, 0, mask.width, mask.height));
  if (history.length > 20) history.shift();
}

function stroke(from, to) {
  marking.globalCompositeOperation = tool === "erase" ? "destination-out" : "source-over";
  marking.strokeStyle = "#fff";
  marking.lineCap = "round";
  marking.lineWidth = 2 * radius();
  marking.beginPath();
  marking.moveTo(from.x, from.y);
  marking.lineTo(to.x + 0.01, to.y);
  marking.stroke();
}

function closePolygon() {
  if (corners.length < 3) return;
  remember();
  marking.globalCompositeOperation = "source-over";
  marking.fillStyle = "#fff";
  marking.fill(path(corners));
  corners = [];
  draw();
}

function undo() {
  if (corners.length) corners.pop();
  else if (history.length) marking.putImageData(history.pop(), 0, 0);
  draw();
}

function path(points) {
  const made = new Path2D();
  points.forEach(({ x, y }, index) => (index ? made.lineTo(x, y) : made.moveTo(x, y)));
  return made;
}

function draw() {
  drawing.clearRect(0, 0, view.width, view.height);
  if (current === null) return;
  drawing.drawImage(pictures[current].bitmap, 0, 0, view.width, view.height);
  drawing.drawImage(tinted(mask, COLOURS[0], 0.6), 0, 0);
  const unit = Math.max(view.width, view.height) / 300;
  drawing.lineWidth = unit;
  drawing.strokeStyle = "#fff";
  drawing.stroke(path(corners));
  for (const { x, y } of corners) drawing.strokeRect(x - unit, y - unit, 2 * unit, 2 * unit);
  if (document.activeElement === view) {
    drawing.beginPath();
    drawing.arc(cursor.x, cursor.y, tool === "polygon" ? 2 * unit : radius(), 0, 7);
    drawing.stroke();
  }
}

function tinted(source, colour, opacity) {
  const canvas = Object.assign(document.createElement("canvas"), { width: source.width, height: source.height });
  const context = canvas.getContext("2d");
  context.globalAlpha = opacity;
  context.fillStyle = colour;
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.globalAlpha = 1;
  context.globalCompositeOperation = "destination-in";
  context.drawImage(source, 0, 0);
  return canvas;
}

function place(event) {
  // The canvas is shown whole inside its box, with margins on two sides.
  const box = view.getBoundingClientRect();
  const scale = Math.min(box.width / view.width, box.height / view.height);
  return {
    x: (event.clientX - box.left - (box.width - scale * view.width) / 2) / scale,
    y: (event.clientY - box.top - (box.height - scale * view.height) / 2) / scale,
  };
}

view.onpointerdown = (event) => {
  if (current === null) return;
  view.focus();
  view.setPointerCapture(event.pointerId);
  cursor = place(event);
  if (tool === "polygon") corners.push(cursor);
  else {
    remember();
    stroke(cursor, cursor);
  }
  draw();
};
view.onpointermove = (event) => {
  if (current === null || !event.buttons || tool === "polygon") return;
  const next = place(event);
  stroke(cursor, next);
  cursor = next;
  draw();
};
view.ondblclick = closePolygon;
view.onfocus = view.onblur = () => {
  keyDown = false;
  draw();
};
view.onkeydown = (event) => {
  const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  const far = (Math.max(view.width, view.height) / 100) * (event.shiftKey ? 5 : 1);
  if (current === null) return;
  if (event.key in steps) {
    const [x, y] = steps[event.key];
    const next = {
      x: Math.min(view.width, Math.max(0, cursor.x + far * x)),
      y: Math.min(view.height, Math.max(0, cursor.y + far * y)),
    };
    if (keyDown) stroke(cursor, next);
    cursor = next;
  } else if (event.key === " " && tool === "polygon") corners.push(cursor);
  else if (event.key === " ") {
    keyDown = !keyDown;
    if (keyDown) {
      remember();
      stroke(cursor, cursor);
    }
  } else if (event.key === "Enter") closePolygon();
  else if (event.key === "Backspace") undo();
  else return;
  event.preventDefault();
  draw();
};

// A mask of the picture's own size, black and white.
async function maskFile({ bitmap }) {
  const canvas = Object.assign(document.createElement("canvas"), { width: bitmap.width, height: bitmap.height });
  const context = canvas.getContext("2d");
  context.imageSmoothingEnabled = false;
  context.drawImage(mask, 0, 0, bitmap.width, bitmap.height);
  const pixels = context.getImageData(0, 0, canvas.width, canvas.height);
  for (let at = 0; at < pixels.data.length; at += 4) {
    pixels.data.fill(pixels.data[at + 3] > 127 ? 255 : 0, at, at + 3);
    pixels.data[at + 3] = 255;
  }
  context.putImageData(pixels, 0, 0);
  return new Promise((done) => canvas.toBlob(done, "image/png"));
}

// --- classes

find("enroll").onsubmit = attempt(async (event) => {
  event.preventDefault();
  if (current === null) throw new Error("Choose a picture first.");
  if (corners.length) closePolygon();
  const name = find("name").value.trim();
  const form = new FormData();
  form.append("image", pictures[current].file);
  form.append("mask", await maskFile(pictures[current]), "mask.png");
  find("status").textContent = `Enrolling ${name} ...`;
  try {
    await ask("PUT", `/v1/classes/${encodeURIComponent(name)}`, form);
  } finally {
    find("status").textContent = "";
  }
  chosen.add(name);
  await listClasses();
  await segmentAll();
});

async function listClasses() {
  classes = (await ask("GET", "/v1/classes")).classes;
  for (const name of chosen) if (!classes.includes(name)) chosen.delete(name);
  find("classes").replaceChildren(...classes.map((name) => {
    const row = document.createElement("li");
    const label = document.createElement("label");
    const box = Object.assign(document.createElement("input"), { type: "checkbox", checked: chosen.has(name) });
    box.onchange = attempt(async () => {
      if (box.checked) chosen.add(name);
      else chosen.delete(name);
      await segmentAll();
    });
    const remove = Object.assign(document.createElement("button"), { type: "button", textContent: "Delete" });
    remove.setAttribute("aria-label", `Delete ${name}`);
    remove.onclick = attempt(async () => {
      await ask("DELETE", `/v1/classes/${encodeURIComponent(name)}`);
      chosen.delete(name);
      await listClasses();
      await segmentAll();
    });
    label.append(box, swatch(name), name);
    row.append(label, remove);
    return row;
  }));
}

const colour = (name) => COLOURS[classes.indexOf(name) % COLOURS.length];

function swatch(name) {
  const mark = Object.assign(document.createElement("span"), { className: "swatch" });
  mark.style.background = colour(name);
  return mark;
}

// --- what is found

let round = 0; // answers to an earlier choice are dropped

async function segmentAll() {
  const mine = ++round;
  const names = [...chosen].map(encodeURIComponent).join(",");
  if (!names || !pictures.length) {
    for (const picture of pictures) picture.answer = null;
    find("status").textContent = "Enroll a class, or choose one.";
    drawFound();
    return;
  }
  for (const [index, picture] of pictures.entries()) {
    find("status").textContent = `Looking at picture ${index + 1} of ${pictures.length} ...`;
    const query = `classes=${names}&min_score=0&threshold=${find("threshold").value}`;
    const form = new FormData();
    form.append("image", picture.file);
    const answer = await ask("POST", `/v1/segment?${query}`, form);
    if (mine !== round) return;
    picture.answer = answer;
    drawFound();
  }
  find("status").textContent = `Looked at ${pictures.length} picture${pictures.length > 1 ? "s" : ""}.`;
}

const isShown = (each) => each.presence === null || each.presence >= Number(find("presence").value);

function drawFound() {
  find("found").replaceChildren(...pictures.map(({ file, bitmap, answer }) => {
    const figure = document.createElement("figure");
    const scale = Math.min(1, 800 / Math.max(bitmap.width, bitmap.height));
    const canvas = Object.assign(document.createElement("canvas"), {
      width: Math.round(bitmap.width * scale), height: Math.round(bitmap.height * scale),
    });
    const context = canvas.getContext("2d");
    context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
    const caption = document.createElement("figcaption");
    caption.append(file.name);
    for (const each of answer ? answer.classes : []) {
      const line = document.createElement("div");
      line.append(swatch(each.name), `${each.name}: `);
      line.append(isShown(each) ? `found, ${(100 * each.area).toFixed(1)} % of the picture` : "not there");
      if (each.presence !== null) line.append(`, presence ${each.presence.toFixed(2)}`);
      caption.append(line);
      if (!isShown(each)) continue;
      const shape = tinted(maskOf(each.rle), colour(each.name), Number(find("opacity").value));
      context.drawImage(shape, 0, 0, canvas.width, canvas.height);
    }
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", caption.textContent);
    figure.append(canvas, caption);
    return figure;
  }));
}

// Run lengths go down the columns, background first.
function maskOf({ size: [height, width], counts }) {
  const canvas = Object.assign(document.createElement("canvas"), { width, height });
  const context = canvas.getContext("2d");
  const pixels = context.createImageData(width, height);
  let at = 0;
  counts.forEach((count, index) => {
    if (index % 2) {
      for (let one = at; one < at + count; one++) {
        pixels.data[4 * ((one % height) * width + Math.floor(one / height)) + 3] = 255;
      }
    }
    at += count;
  });
  context.putImageData(pixels, 0, 0);
  return canvas;
}

// --- controls

for (const button of document.querySelectorAll("[data-tool]")) {
  button.onclick = () => {
    tool = button.dataset.tool;
    corners = [];
    for (const each of document.querySelectorAll("[data-tool]")) each.setAttribute("aria-pressed", String(each === button));
    draw();
  };
}
find("undo").onclick = undo;
find("clear").onclick = () => {
  remember();
  marking.clearRect(0, 0, mask.width, mask.height);
  corners = [];
  draw();
};
find("files").onchange = () => addFiles([...find("files").files]);
find("drop").ondragover = (event) => {
  event.preventDefault();
  find("drop").classList.add("over");
};
find("drop").ondragleave = () => find("drop").classList.remove("over");
find("drop").ondrop = (event) => {
  event.preventDefault();
  find("drop").classList.remove("over");
  addFiles([...event.dataTransfer.files]);
};
find("opacity").oninput = drawFound;
find("presence").oninput = () => {
  find("presence-value").value = find("presence").value;
  drawFound();
};
find("threshold").oninput = () => { find("threshold-value").value = find("threshold").value; };
find("threshold").onchange = attempt(segmentAll);
find("ask-token").onsubmit = attempt(async (event) => {
  event.preventDefault();
  await listClasses();
});
attempt(listClasses)();
