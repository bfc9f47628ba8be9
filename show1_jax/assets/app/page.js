// Shows `props.value` and changes only what differs, so that videos that are there play on.
// A click on what has `data-act` reaches Python, with all of its data.

const root = element.querySelector(".show1");
const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;

const alike = (old, next) =>
  old && old.nodeName === next.nodeName && old.dataset?.key === next.dataset?.key;

function change(old, name, value) {
  if (old.nodeName !== "IMG" || name !== "src") return old.setAttribute(name, value);
  // The old preview stays until the new one is there; by then it may be gone.
  const next = new Image();
  next.onload = () => old.setAttribute(name, value);
  next.src = value;
}

function sync(old, now) {
  for (const name of old.getAttributeNames())
    if (!now.hasAttribute(name)) old.removeAttribute(name);
  for (const name of now.getAttributeNames())
    if (old.getAttribute(name) !== now.getAttribute(name)) change(old, name, now.getAttribute(name));
  const keys = new Set([...now.children].map((child) => child.dataset.key));
  for (const child of [...old.children])
    if (child.dataset.key && !keys.has(child.dataset.key)) child.remove();
  let place = old.firstChild;
  for (const next of [...now.childNodes]) {
    if (!alike(place, next)) {
      old.insertBefore(next, place);
      continue;
    }
    if (next.nodeType === Node.ELEMENT_NODE) sync(place, next);
    else if (place.data !== next.data) place.data = next.data;
    place = place.nextSibling;
  }
  while (place) {
    const last = place;
    place = place.nextSibling;
    last.remove();
  }
}

function show() {
  // A parsed document loads nothing until its elements are in the page.
  const now = new DOMParser().parseFromString(props.value || "", "text/html").body;
  for (const time of now.querySelectorAll("time"))
    time.textContent = new Date(time.dateTime).toLocaleString([], {
      dateStyle: "medium", timeStyle: "short",
    });
  if (calm) for (const video of now.querySelectorAll("video")) video.removeAttribute("autoplay");
  now.className = root.className;
  const before = root.querySelector(".job")?.dataset.key;
  sync(root, now);
  const job = root.querySelector(".job");
  const begins = before !== undefined || root.dataset.shown;
  if (job && begins && job.dataset.key !== before && /queued|in_progress/.test(job.dataset.status))
    goTo("videos");
  root.dataset.shown = "yes";
}

function goTo(id) {
  const place = document.getElementById(id);
  const { top, bottom } = place.getBoundingClientRect();
  if (top < 0 || top > innerHeight * 0.6 || bottom < 0)
    place.scrollIntoView({ behavior: calm ? "auto" : "smooth" });
}

async function upload(input) {
  const file = input.files[0];
  const said = root.querySelector("[role=status]");
  if (!file) return;
  const most = Number(input.dataset.most);
  if (file.size > most) {
    said.textContent = `Adapters have at most ${Math.floor(most / 2 ** 20)} MiB.`;
    return;
  }
  said.textContent = `${file.name} is uploaded …`;
  input.disabled = true;
  try {
    const address = `v1/adapters/${encodeURIComponent(file.name)}`;
    const answer = await fetch(address, { method: "PUT", body: file });
    const fields = await answer.json();
    said.textContent = answer.ok ? `${file.name} is there.` : `${fields.error.message}.`;
    if (answer.ok) trigger("click", { act: "uploaded", name: file.name });
  } catch {
    said.textContent = `${file.name} could not be uploaded: is the server there?`;
  }
  input.disabled = false;
  input.value = "";
}

element.addEventListener("click", (event) => {
  const button = event.target.closest("[data-act]");
  if (!button || (button.dataset.ask && !confirm(button.dataset.ask))) return;
  trigger("click", { ...button.dataset });
  if (button.dataset.to) goTo(button.dataset.to);
});
element.addEventListener("change", (event) => {
  if (event.target.type === "file") upload(event.target);
});
for (const [over, out] of [["mouseover", "mouseout"], ["focusin", "focusout"]]) {
  const clip = (event) => event.target.closest(".thumb")?.querySelector("video");
  element.addEventListener(over, (event) => clip(event)?.play().catch(() => {}));
  element.addEventListener(out, (event) => clip(event)?.pause());
}
watch("value", show);
show();
