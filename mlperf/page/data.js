"use strict";

/* The value of a block that blocks.py wrote. */
async function block(id) {
  const text = atob(document.getElementById(id).textContent);
  const bytes = new Uint8Array(text.length);
  for (let place = 0; place < text.length; place++) bytes[place] = text.charCodeAt(place);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).json();
}

/* An element; text becomes text nodes, never HTML. */
function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key in made && typeof value !== "string") made[key] = value;
    else made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}

/* Text as nodes in which what `controls`, a regular expression, matches is shown as code points. */
function marked(text, controls) {
  const nodes = document.createDocumentFragment();
  let start = 0;
  for (const match of text.matchAll(controls)) {
    const code = match[0].codePointAt(0).toString(16).toUpperCase().padStart(4, "0");
    nodes.append(text.slice(start, match.index), element("span", { class: "control" }, `U+${code}`));
    start = match.index + match[0].length;
  }
  nodes.append(text.slice(start));
  return nodes;
}
