/**
 * A console for live updates: what runs on this device, what the server offers, and what the updater plugin reports.
 *
 * There is no build step. Inside a Capacitor app the native side puts the installed plugins into window.Capacitor.Plugins
 * before any script of the page runs; in a plain browser there are none, and the page only says so.
 */

/** The plugin @capgo/capacitor-updater, or undefined in a plain browser. */
const updater = window.Capacitor?.Plugins?.CapacitorUpdater;

// Before anything that might fail: a bundle that does not call this within the plugin's appReadyTimeout (10 s) counts as
// broken, and the app goes back to the last good one.
const ready = updater?.notifyAppReady();

const MAX_LOG_LINES = 200;

/** The last offer of the server, as getLatest() gave it; null while there is none. */
let offered = null;

/** True while an action runs. All buttons are disabled then. */
let busy = false;

/* ---------------------------------------------------------------- the page */

const byId = (id) => document.getElementById(id);

/** Creates an element with attributes and children; strings become text, never markup. */
function element(tag, attributes, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === 'function') node.addEventListener(name, value);
    else node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

function log(text, bad = false) {
  const now = new Date();
  const line = element(
    'li',
    bad ? { class: 'bad' } : {},
    element('time', { datetime: now.toISOString() }, now.toLocaleTimeString()),
    ` ${text}`,
  );
  const list = byId('log');
  list.prepend(line);
  while (list.childElementCount > MAX_LOG_LINES) list.lastElementChild.remove();
}

function showFacts(facts) {
  const rows = Object.entries(facts).flatMap(([name, value]) => [
    element('dt', {}, name),
    element('dd', {}, String(value ?? 'unknown')),
  ]);
  byId('facts').replaceChildren(...rows);
}

function showOffer(text, bad = false) {
  const offer = byId('offer');
  offer.textContent = text;
  offer.classList.toggle('bad', bad);
}

function showProgress(percent) {
  const bar = byId('progress');
  bar.hidden = percent === null;
  bar.value = percent ?? 0;
}

/** Fills a list with rows of a text and some buttons. */
function showRows(id, rows, empty) {
  const items = rows.map(({ text, actions }) =>
    element(
      'li',
      {},
      element('span', {}, text),
      ...actions.map(({ label, run }) => element('button', { type: 'button', click: () => act(label, run) }, label)),
    ),
  );
  if (items.length === 0) items.push(element('li', {}, empty));
  byId(id).replaceChildren(...items);
}

/** Puts the buttons into the state that belongs to what is known now. */
function enableButtons() {
  const usable = Boolean(updater) && !busy;
  for (const button of document.querySelectorAll('button')) button.disabled = !usable;
  byId('install').disabled = !usable || offered === null;
  byId('later').disabled = !usable || offered === null;
}

/* -------------------------------------------------------------- small helpers */

function messageOf(error) {
  return error instanceof Error ? error.message : String(error?.message ?? error);
}

/** The value a plugin call gives, or undefined if it fails: older plugins lack some of the methods. */
async function orUndefined(call) {
  try {
    return await call();
  } catch {
    return undefined;
  }
}

function sizeText(bytes) {
  if (bytes < 1024) return `${bytes} B`;
  const kib = bytes / 1024;
  return kib < 1024 ? `${kib.toFixed(1)} KiB` : `${(kib / 1024).toFixed(1)} MiB`;
}

/** Runs one action at a time and tells how it went; afterwards the page shows the new state. */
async function act(label, run) {
  if (busy) return;
  busy = true;
  enableButtons();
  try {
    await run();
    log(`${label}: done`);
  } catch (error) {
    log(`${label}: ${messageOf(error)}`, true);
  }
  busy = false;
  await refresh();
}

/* ------------------------------------------------------------------- device */

async function refresh() {
  await Promise.all([refreshFacts(), refreshChannels(), refreshBundles()]);
  enableButtons();
}

async function refreshFacts() {
  const [current, next, device, plugin, channel, automatic] = await Promise.all([
    orUndefined(() => updater.current()),
    orUndefined(() => updater.getNextBundle()),
    orUndefined(() => updater.getDeviceId()),
    orUndefined(() => updater.getPluginVersion()),
    orUndefined(() => updater.getChannel()),
    orUndefined(() => updater.isAutoUpdateEnabled()),
  ]);
  const bundle = current?.bundle;
  showFacts({
    'Running bundle': bundle && `${bundle.version} (${bundle.status})`,
    'Next bundle': next?.version ?? 'the same',
    'Native version': current?.native,
    Channel: channel?.channel,
    'Automatic updates': automatic && (automatic.enabled ? 'on' : 'off'),
    'Device id': device?.deviceId,
    Plugin: plugin?.version,
  });
}

/* ------------------------------------------------------------------- update */

/** Asks the server what it offers. Sizes come along where plugin and server can tell them. */
async function check() {
  offered = null;
  showOffer('The check failed.', true); // unless an answer says otherwise
  const latest = await updater.getLatest({ includeBundleSize: true });
  // An answer with kind or error is no offer; up_to_date is the quiet one of the three kinds.
  if (latest.kind === 'up_to_date' || latest.error === 'no_new_version_available') {
    showOffer('This device is up to date.');
    return;
  }
  if (latest.kind || latest.error || !latest.url) {
    showOffer(latest.message ?? latest.error ?? 'The server offers nothing.', true);
    return;
  }
  offered = latest;
  showOffer(describe(latest));
}

function describe(latest) {
  const parts = [`Version ${latest.version} is available`];
  if (latest.manifest) {
    const missing = latest.missing?.missingCount ?? latest.manifest.length;
    parts.push(`${missing} of ${latest.manifest.length} files to download`);
  } else {
    parts.push('as one zip');
  }
  if (latest.downloadSize?.totalSize) parts.push(sizeText(latest.downloadSize.totalSize));
  if (latest.comment) parts.push(latest.comment);
  return parts.join(', ');
}

/** Downloads the offer and hands the stored bundle to use. The plugin verifies the checksum of what it downloads. */
async function download(use) {
  const { url, version, checksum, sessionKey, manifest } = offered;
  showProgress(0);
  try {
    const bundle = await updater.download({
      url,
      version,
      ...(checksum && { checksum }),
      ...(sessionKey && { sessionKey }),
      ...(manifest && { manifest }),
    });
    offered = null;
    await use(bundle);
  } finally {
    showProgress(null);
  }
}

/** Switches at once. The page ends here: the app starts anew with the other bundle. */
const install = () => download((bundle) => updater.set({ id: bundle.id }));

/** Switches when the app goes to the background or starts again. */
const installLater = () =>
  download(async (bundle) => {
    await updater.next({ id: bundle.id });
    showOffer(`Version ${bundle.version} is ready for the next start.`);
  });

/* ----------------------------------------------------------------- channels */

async function refreshChannels() {
  const answer = await orUndefined(() => updater.listChannels());
  const rows = (answer?.channels ?? []).map((channel) => ({
    text: channel.public ? `${channel.name} (public)` : channel.name,
    actions: [{ label: 'Join', run: () => join(channel.name) }],
  }));
  showRows('channels', rows, 'None that this device may join.');
}

async function join(channel) {
  await updater.setChannel({ channel });
  await check();
}

async function leave() {
  await updater.unsetChannel({});
  await check();
}

/* ------------------------------------------------------------------ bundles */

async function refreshBundles() {
  const [stored, current] = await Promise.all([
    orUndefined(() => updater.list()),
    orUndefined(() => updater.current()),
  ]);
  const rows = (stored?.bundles ?? []).map((bundle) => {
    const running = bundle.id === current?.bundle.id;
    return {
      text: `${bundle.version} (${running ? 'running' : bundle.status})`,
      actions: running
        ? []
        : [
            { label: 'Use', run: () => updater.set({ id: bundle.id }) },
            { label: 'Delete', run: () => updater.delete({ id: bundle.id }) },
          ],
    };
  });
  showRows('bundles', rows, 'Only the native one.');
}

const reset = () => updater.reset({ toLastSuccessful: false });

/* ------------------------------------------------------------------- events */

/** What the log says about each event of the plugin. */
const EVENTS = {
  appReady: ({ bundle, status }) => `app ready, bundle ${bundle?.version}, ${status}`,
  updateCheckResult: ({ kind, message }) => `checked: ${kind}${message ? `, ${message}` : ''}`,
  updateAvailable: ({ bundle }) => `update ${bundle?.version} available`,
  noNeedUpdate: ({ bundle }) => `no update needed, running ${bundle?.version}`,
  downloadComplete: ({ bundle }) => `downloaded ${bundle?.version}`,
  set: ({ bundle }) => `now using ${bundle?.version}`,
  setNext: ({ bundle }) => `will use ${bundle?.version} next`,
  appReloaded: () => 'app reloaded',
};

/** The same for those that tell of something wrong. */
const FAULTS = {
  downloadFailed: ({ version }) => `download of ${version} failed`,
  updateFailed: ({ bundle }) => `bundle ${bundle?.version} did not start and was given up`,
  breakingAvailable: ({ version }) => `update ${version} needs a newer native app`,
  channelPrivate: ({ channel, message }) => `channel ${channel} may not be joined: ${message}`,
};

function listen() {
  updater.addListener('download', ({ percent }) => showProgress(percent < 100 ? percent : null));
  for (const [bad, table] of [
    [false, EVENTS],
    [true, FAULTS],
  ]) {
    for (const [name, tell] of Object.entries(table)) {
      updater.addListener(name, (event) => log(tell(event ?? {}), bad));
    }
  }
}

/* -------------------------------------------------------------------- start */

async function start() {
  if (!updater) {
    byId('browser').hidden = false;
    showFacts({ 'Running bundle': 'none, this is a browser' });
    log('the updater plugin is not here');
    return;
  }
  for (const [id, run] of Object.entries({ check, install, later: installLater, leave, reset })) {
    const button = byId(id);
    button.addEventListener('click', () => act(button.textContent, run));
  }
  listen();
  try {
    const { bundle } = await ready;
    log(`told the plugin that bundle ${bundle.version} works`);
  } catch (error) {
    log(`notifyAppReady: ${messageOf(error)}`, true);
  }
  await refresh();
}

start();
