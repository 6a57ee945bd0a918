'use strict';
// Reads the blocks of the page, computes cosines by layer, and draws. Nothing is asked of a network.
const PAGE = 120; // tiles that the grid shows at once
const CELL = 46; // pixels of the map in which one thumbnail is drawn
const TILE = 38;
const NEAR = 26; // pixels around a point that belong to it
// Of Okabe and Ito, also for colour-blind eyes; the last is shared by all further labels.
const COLOURS = ['#0072b2', '#e69f00', '#009e73', '#cc79a7', '#56b4e9', '#d55e00', '#f0e442', '#8a8a8a'];

const byId = id => document.getElementById(id);
const data = JSON.parse(byId('data').textContent);
const count = data.names.length;
const lowerNames = data.names.map(name => name.toLowerCase());

function bytesOf(id) {
  const element = byId(id);
  const text = element.textContent;
  element.remove(); // half of the memory
  if (Uint8Array.fromBase64) return Uint8Array.fromBase64(text);
  const binary = atob(text);
  const bytes = new Uint8Array(binary.length);
  for (let at = 0; at < bytes.length; at++) bytes[at] = binary.charCodeAt(at);
  return bytes;
}

// As `_block` of explorer.py writes it.
function readLayer(layer, number) {
  const { buffer } = bytesOf(`layer-${number}`);
  const size = layer.components;
  const along = new Float32Array(buffer, 4 * size, count);
  const points = new Float32Array(buffer, 4 * (size + count), 2 * count);
  return {
    ...layer, scales: new Float32Array(buffer, 0, size), along, points,
    codes: new Int8Array(buffer, 4 * (size + 3 * count), size * count),
    scores: new Float32Array(count), of: -1,
  };
}

const sprite = new Image();
sprite.src = URL.createObjectURL(new Blob([bytesOf('sprite')], { type: 'image/jpeg' }));
const layers = data.layers.map(readLayer);

// Cosine of every image to one; the formula stands in compact_features.py.
function cosines(layer, image) {
  if (layer.of === image) return layer.scores;
  const { codes, scales, along, scores, components: size } = layer;
  const asked = new Float32Array(size);
  for (let j = 0; j < size; j++) asked[j] = codes[image * size + j] * scales[j] * scales[j];
  const base = along[image] - layer.meanSquare;
  for (let other = 0, at = 0; other < count; other++) {
    let sum = 0;
    for (let j = 0; j < size; j++) sum += asked[j] * codes[at++];
    scores[other] = base + along[other] + sum;
  }
  layer.of = image;
  return scores;
}

// Weighted mean of the layers' cosines; null where all weights are 0.
function fusedCosines(image, weights) {
  const total = weights.reduce((sum, weight) => sum + weight, 0);
  if (!total) return null;
  const fused = new Float32Array(count);
  layers.forEach((layer, number) => {
    const share = weights[number] / total;
    if (!share) return;
    const scores = cosines(layer, image);
    for (let other = 0; other < count; other++) fused[other] += share * scores[other];
  });
  return fused;
}

// Images with the highest scores, best first, without `image` itself.
function nearest(scores, image, most) {
  const best = [];
  for (let other = 0; other < count; other++) {
    if (other === image || (best.length === most && scores[other] <= scores[best[most - 1]])) continue;
    let at = best.length === most ? most - 1 : best.length;
    while (at > 0 && scores[best[at - 1]] < scores[other]) { best[at] = best[at - 1]; at--; }
    best[at] = other;
  }
  return best;
}

const state = {
  image: 0, mapLayer: layers.length - 1, query: '', label: '', weights: layers.map(() => 1),
  view: { x: 0.5, y: 0.5, zoom: 1 },
};

// The address: #i=NAME&map=LAYER&q=TEXT&label=NAME&w=1,0.5&v=X,Y,ZOOM
function addressOf() {
  const words = new URLSearchParams({ i: data.names[state.image], map: layers[state.mapLayer].name });
  if (state.query) words.set('q', state.query);
  if (state.label) words.set('label', state.label);
  if (state.weights.some(weight => weight !== 1)) words.set('w', state.weights.join(','));
  const { x, y, zoom } = state.view;
  if (zoom !== 1 || x !== 0.5 || y !== 0.5) words.set('v', [x, y, zoom].map(one => +one.toFixed(4)).join(','));
  return `#${words}`;
}

function readAddress() {
  const words = new URLSearchParams(location.hash.slice(1));
  const image = data.names.indexOf(words.get('i'));
  const layer = layers.findIndex(one => one.name === words.get('map'));
  state.image = image >= 0 ? image : state.image;
  state.mapLayer = layer >= 0 ? layer : state.mapLayer;
  state.query = words.get('q') || '';
  state.label = data.labels.includes(words.get('label')) ? words.get('label') : '';
  const weights = (words.get('w') || '').split(',').map(Number);
  const right = weights.length === layers.length && weights.every(one => one >= 0 && one <= 1);
  state.weights = right && words.get('w') ? weights : layers.map(() => 1);
  const [x, y, zoom] = (words.get('v') || '').split(',').map(Number);
  state.view = zoom >= 1 && Number.isFinite(x + y + zoom) ? { x, y, zoom } : { x: 0.5, y: 0.5, zoom: 1 };
}

let writing = 0;
function keepAddress(isNew) {
  clearTimeout(writing);
  if (isNew) history.pushState(null, '', addressOf());
  else writing = setTimeout(() => history.replaceState(null, '', addressOf()), 150);
}

function thumb(image, element = document.createElement('span')) {
  const { across, down } = data.tile;
  element.className = element.className.replace(/ ?none/, '') || 'thumb';
  const why = data.missing[image];
  element.textContent = why === undefined ? '' : `${data.names[image]}: ${why}`;
  element.classList.toggle('none', why !== undefined);
  element.style.backgroundImage = why === undefined ? `url(${sprite.src})` : 'none';
  element.style.backgroundSize = `${across * 100}% ${down * 100}%`;
  const x = across > 1 ? (image % across) / (across - 1) : 0;
  const y = down > 1 ? Math.floor(image / across) / (down - 1) : 0;
  element.style.backgroundPosition = `${x * 100}% ${y * 100}%`;
  return element;
}

const labelOf = image => (data.classes[image] === data.unlabelled ? '' : data.labels[data.classes[image]]);

const shortName = image => data.names[image].split('/').pop().replace(/\.\w{1,5}$/, '');
// Lines may break after the parts of a name.
const breakable = text => text.split(/(?<=[_-])/).flatMap(part => [part, document.createElement('wbr')]);

function imageButton(image, words) {
  const button = document.createElement('button');
  button.type = 'button';
  button.dataset.image = image;
  button.tabIndex = -1;
  button.setAttribute('aria-label', words);
  button.title = data.names[image];
  button.append(thumb(image));
  return button;
}

function fill(list, buttons) {
  list.replaceChildren(...buttons.map(button => {
    const item = document.createElement('li');
    item.append(button);
    return item;
  }));
  if (buttons.length) buttons[0].tabIndex = 0;
}

let filtered = [];
let isFiltered = new Uint8Array(count);
let shown = PAGE;
function filter() {
  const query = state.query.toLowerCase();
  filtered = [];
  isFiltered = new Uint8Array(count);
  for (let image = 0; image < count; image++) {
    if (query && !lowerNames[image].includes(query)) continue;
    if (state.label && labelOf(image) !== state.label) continue;
    filtered.push(image);
    isFiltered[image] = 1;
  }
  shown = PAGE;
  showGrid();
}

function showGrid() {
  const part = filtered.slice(0, shown);
  fill(byId('grid'), part.map(image => imageButton(image, data.names[image])));
  const some = filtered.length > part.length ? `, ${part.length} shown` : '';
  byId('found').textContent = `${filtered.length} of ${count} match${some}`;
  byId('more').hidden = filtered.length <= part.length;
  markCurrent();
}

function markCurrent() {
  for (const button of document.querySelectorAll('#grid button')) {
    if (+button.dataset.image === state.image) button.setAttribute('aria-current', 'true');
    else button.removeAttribute('aria-current');
  }
}

function showColumn(column) {
  const number = +column.dataset.layer;
  const scores = number < 0 ? fusedCosines(state.image, state.weights) : cosines(layers[number], state.image);
  const found = scores ? nearest(scores, state.image, data.nearest) : [];
  fill(column.querySelector('ol'), found.map((image, place) => {
    const score = scores[image].toFixed(3);
    const same = data.files[image] && data.files[image] === data.files[state.image] ? ', identical file' : '';
    const button = imageButton(image, `${place + 1}: ${data.names[image]}, cosine ${score}${same}`);
    const words = document.createElement('span');
    const value = document.createElement('b');
    value.textContent = score;
    words.append(value, ...breakable(`${labelOf(image) || shortName(image)}${same}`));
    button.append(words);
    return button;
  }));
  return found;
}

function showNear() {
  thumb(state.image, byId('asked')).setAttribute('aria-label', data.names[state.image]);
  const label = labelOf(state.image);
  byId('asked-name').textContent = data.names[state.image] + (label ? ` (${label})` : '');
  byId('near-head').textContent = `Nearest to ${data.names[state.image]}`;
  const first = [];
  for (const column of document.querySelectorAll('.column')) {
    const [best] = showColumn(column);
    const name = column.querySelector('h3').textContent;
    if (best !== undefined) first.push(`by ${name} ${data.names[best]}`);
  }
  byId('status').textContent = `Nearest to ${data.names[state.image]}: ${first.join(', ')}`;
  markCurrent();
}

function choose(image) {
  state.image = image;
  keepAddress(true);
  showNear();
  drawSoon();
}

// The map.
const canvas = byId('plane');
const picture = canvas.getContext('2d');
let drawing = 0;
const drawSoon = () => { drawing ||= requestAnimationFrame(draw); };

// Pixels of a unit of the map, and of the place in the middle.
function frame() {
  const { width, height } = canvas.getBoundingClientRect();
  return { width, height, scale: Math.max(1, Math.min(width, height) - TILE - 8) * state.view.zoom };
}

function placeOf(image, { width, height, scale }) {
  const { points } = layers[state.mapLayer];
  return [
    (points[2 * image] - state.view.x) * scale + width / 2,
    height / 2 - (points[2 * image + 1] - state.view.y) * scale,
  ];
}

const mostCommon = (() => {
  const counts = new Map();
  for (const one of data.classes) if (one !== data.unlabelled) counts.set(one, (counts.get(one) || 0) + 1);
  return [...counts.keys()].sort((a, b) => counts.get(b) - counts.get(a)).slice(0, COLOURS.length - 1);
})();
const colourOf = image => COLOURS[mostCommon.indexOf(data.classes[image])] || COLOURS[COLOURS.length - 1];

function draw() {
  drawing = 0;
  const box = frame();
  const ratio = window.devicePixelRatio || 1;
  canvas.width = Math.round(box.width * ratio);
  canvas.height = Math.round(box.height * ratio);
  picture.setTransform(ratio, 0, 0, ratio, 0, 0);
  const style = getComputedStyle(document.documentElement);
  const taken = new Set();
  const tiles = [];
  for (let image = 0; image < count; image++) {
    const [x, y] = placeOf(image, box);
    if (x < -TILE || y < -TILE || x > box.width + TILE || y > box.height + TILE) continue;
    picture.globalAlpha = isFiltered[image] ? 1 : 0.12;
    picture.fillStyle = colourOf(image);
    picture.beginPath();
    picture.arc(x, y, 3, 0, 7);
    picture.fill();
    // Cells are those of the map, not of the window, so that thumbnails stay while it is moved.
    const cell = `${Math.floor((x - box.width / 2 + state.view.x * box.scale) / CELL)},${
      Math.floor((y - box.height / 2 - state.view.y * box.scale) / CELL)}`;
    if (!isFiltered[image] || taken.has(cell) || data.missing[image] !== undefined) continue;
    taken.add(cell);
    tiles.push([image, x, y]);
  }
  const near = nearest(cosines(layers[state.mapLayer], state.image), state.image, data.nearest);
  for (const [image, x, y] of tiles) drawTile(image, x, y, colourOf(image), 1.5);
  const mark = style.getPropertyValue('--mark').trim();
  for (const image of near) drawTile(image, ...placeOf(image, box), mark, 2);
  drawTile(state.image, ...placeOf(state.image, box), mark, 5);
  picture.globalAlpha = 1;
  if (document.activeElement === canvas) {
    picture.strokeStyle = mark;
    picture.lineWidth = 1;
    picture.strokeRect(box.width / 2 - 6, box.height / 2 - 6, 12, 12);
  }
  const { axes } = layers[state.mapLayer];
  byId('axes').textContent = `${axes.length ? `Across ${axes[0]}${axes[1] ? `, up ${axes[1]}` : ''}. ` : ''}`
    + 'Drag to move; Ctrl and the wheel, two fingers or + and − to zoom. The thick frame is the chosen image; frames of its colour are its nearest by this layer.';
}

function drawTile(image, x, y, colour, line) {
  const { side, across } = data.tile;
  const left = x - TILE / 2;
  const top = y - TILE / 2;
  picture.globalAlpha = 1;
  picture.strokeStyle = colour;
  picture.lineWidth = line;
  if (sprite.naturalWidth && data.missing[image] === undefined) {
    const from = [(image % across) * side, Math.floor(image / across) * side];
    picture.drawImage(sprite, ...from, side, side, left, top, TILE, TILE);
  }
  picture.strokeRect(left, top, TILE, TILE);
}

function imageAt(x, y, reach = NEAR) {
  const box = frame();
  let best = -1;
  let least = reach * reach;
  for (const image of filtered) {
    const [px, py] = placeOf(image, box);
    const far = (px - x) ** 2 + (py - y) ** 2;
    if (far < least) { least = far; best = image; }
  }
  return best;
}

// Zooms by a factor, 0 for all; what lies under (x, y) stays there.
function zoomBy(factor, x, y) {
  const { view } = state;
  if (!factor) {
    Object.assign(view, { x: 0.5, y: 0.5, zoom: 1 });
  } else {
    const box = frame();
    const zoom = Math.min(400, Math.max(1, view.zoom * factor));
    const change = (1 - view.zoom / zoom) / box.scale;
    if (x !== undefined) {
      view.x += (x - box.width / 2) * change;
      view.y -= (y - box.height / 2) * change;
    }
    view.zoom = zoom;
  }
  keepAddress(false);
  drawSoon();
}

function moveBy(x, y) {
  const { scale } = frame();
  state.view.x = Math.min(1.2, Math.max(-0.2, state.view.x - x / scale));
  state.view.y = Math.min(1.2, Math.max(-0.2, state.view.y + y / scale));
  keepAddress(false);
  drawSoon();
}

const fingers = new Map();
let moved = 0;
const within = event => {
  const box = canvas.getBoundingClientRect();
  return [event.clientX - box.left, event.clientY - box.top];
};
canvas.addEventListener('pointerdown', event => {
  canvas.setPointerCapture(event.pointerId);
  fingers.set(event.pointerId, within(event));
  moved = fingers.size > 1 ? Infinity : 0;
});
canvas.addEventListener('pointermove', event => {
  const now = within(event);
  const before = fingers.get(event.pointerId);
  if (!before) {
    const image = imageAt(...now);
    canvas.title = image < 0 ? '' : data.names[image];
    return;
  }
  if (fingers.size === 1) {
    moved += Math.hypot(now[0] - before[0], now[1] - before[1]);
    if (moved > 4) moveBy(now[0] - before[0], now[1] - before[1]);
  } else {
    const [other] = [...fingers].filter(([id]) => id !== event.pointerId).map(([, place]) => place);
    const apart = place => Math.max(1, Math.hypot(place[0] - other[0], place[1] - other[1]));
    zoomBy(apart(now) / apart(before), (now[0] + other[0]) / 2, (now[1] + other[1]) / 2);
  }
  fingers.set(event.pointerId, now);
});
for (const name of ['pointerup', 'pointercancel']) {
  canvas.addEventListener(name, event => {
    fingers.delete(event.pointerId);
    if (name === 'pointercancel' || moved > 4) return;
    const image = imageAt(...within(event));
    if (image >= 0) choose(image);
  });
}
canvas.addEventListener('wheel', event => {
  if (!event.ctrlKey && document.activeElement !== canvas) return; // the page scrolls
  event.preventDefault();
  zoomBy(Math.exp(-event.deltaY / 300), ...within(event));
}, { passive: false });
canvas.addEventListener('keydown', event => {
  if (event.altKey || event.ctrlKey || event.metaKey) return;
  const step = { ArrowLeft: [40, 0], ArrowRight: [-40, 0], ArrowUp: [0, 40], ArrowDown: [0, -40] }[event.key];
  const zoom = { '+': 1.5, '=': 1.5, '-': 1 / 1.5, 0: 0 }[event.key];
  if (step) moveBy(...step);
  else if (zoom !== undefined) zoomBy(zoom);
  else if (event.key === 'Enter') {
    const { width, height } = frame();
    const image = imageAt(width / 2, height / 2, Infinity);
    if (image >= 0) choose(image);
  } else return;
  event.preventDefault();
});
for (const name of ['focus', 'blur']) canvas.addEventListener(name, drawSoon);
for (const button of document.querySelectorAll('[data-zoom]')) {
  button.addEventListener('click', () => zoomBy(+button.dataset.zoom));
}
byId('map-layer').addEventListener('change', event => {
  state.mapLayer = +event.target.value;
  keepAddress(false);
  drawSoon();
});

// Filters, weights, and lists of images.
byId('query').addEventListener('input', event => {
  state.query = event.target.value;
  keepAddress(false);
  filter();
  drawSoon();
});
byId('label').addEventListener('change', event => {
  state.label = event.target.value;
  keepAddress(false);
  filter();
  drawSoon();
});
byId('more').addEventListener('click', () => {
  const first = shown;
  shown += PAGE;
  showGrid();
  byId('grid').querySelectorAll('button')[first]?.focus();
});
const fusedColumn = document.querySelector('.fused');
fusedColumn?.addEventListener('input', event => {
  const weight = +event.target.value;
  state.weights[+event.target.dataset.weight] = weight;
  event.target.nextElementSibling.textContent = weight;
  showColumn(fusedColumn);
  keepAddress(false);
});
document.addEventListener('click', event => {
  const button = event.target.closest('button[data-image]');
  if (!button) return;
  const fromGrid = button.closest('#grid');
  choose(+button.dataset.image);
  if (!fromGrid) byId('near').focus({ preventScroll: true }); // the button is gone
});

// Arrow keys go within a list, Tab from list to list.
const KEYS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
function beside(buttons, button, [across, down]) {
  const from = button.getBoundingClientRect();
  let best = null;
  let least = Infinity;
  for (const other of buttons) {
    const box = other.getBoundingClientRect();
    const x = box.left - from.left;
    const y = box.top - from.top;
    const ahead = across * x + down * y;
    const aside = Math.abs(across ? y : x);
    if (ahead < from.width / 4 || (across && aside > from.height / 2)) continue;
    if (ahead + 4 * aside < least) { least = ahead + 4 * aside; best = other; }
  }
  return best;
}
document.addEventListener('keydown', event => {
  const button = event.target.closest?.('button[data-image]');
  if (!button || event.altKey || event.ctrlKey || event.metaKey) return;
  const list = button.closest('#grid') || byId('columns');
  const buttons = [...list.querySelectorAll('button[data-image]')];
  const next = KEYS[event.key] ? beside(buttons, button, KEYS[event.key])
    : { Home: buttons[0], End: buttons[buttons.length - 1] }[event.key];
  if (!next) return;
  event.preventDefault();
  button.tabIndex = -1;
  next.tabIndex = 0;
  next.focus();
});
function light(event) {
  const image = event.target.closest?.('.column button')?.dataset.image;
  for (const button of document.querySelectorAll('.column button')) {
    button.classList.toggle('lit', image !== undefined && button.dataset.image === image);
  }
}
for (const name of ['mouseover', 'focusin']) document.addEventListener(name, light);

function showControls() {
  byId('query').value = state.query;
  byId('label').value = state.label;
  byId('map-layer').value = state.mapLayer;
  for (const input of document.querySelectorAll('[data-weight]')) {
    input.value = state.weights[+input.dataset.weight];
    input.nextElementSibling.textContent = input.value;
  }
}

function showAll() {
  readAddress();
  showControls();
  filter();
  showNear();
  drawSoon();
}

function start() {
  byId('label-of').hidden = !data.labels.length;
  byId('label').append(new Option('all', ''), ...data.labels.map(name => new Option(name, name)));
  byId('legend').replaceChildren(...(data.labels.length ? mostCommon : []).map(one => {
    const item = document.createElement('li');
    const dot = document.createElement('i');
    dot.style.background = COLOURS[mostCommon.indexOf(one)];
    item.append(dot, data.labels[one]);
    return item;
  }));
  showAll();
  addEventListener('popstate', showAll);
  addEventListener('resize', drawSoon);
  matchMedia('(prefers-color-scheme: dark)').addEventListener('change', drawSoon);
  sprite.decode().then(drawSoon, drawSoon);
}
start();
