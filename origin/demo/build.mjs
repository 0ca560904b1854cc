// Rebuilds the delta files and the channel manifest of the demo app from its sources and its zip:
//
//     node origin/demo/build.mjs
//
// This folder is the storage of the first-run example (an origin of kind "file") and, beside it, what the storage is
// made from:
//
//     manifests/com.example.demo.json                     the channel manifest, written by this script
//     orgs/demo/apps/com.example.demo/1.1.0.zip           the bundle, written by Capgo's own command line tool
//     orgs/demo/apps/com.example.demo/delta/<hash>_<path> the bundle's files one by one, written by this script
//     app/                                                the web app, as it is in the zip
//     package.json, capacitor.config.json                 what makes the folder a Capacitor project, for that tool
//     build.mjs                                           this script
//
// Only what the manifest names is ever served. After a change in app/, make the zip anew before running this script, in
// this folder:
//
//     npm install --no-package-lock
//     npx @capgo/cli@8.68.1 bundle zip com.example.demo --path app --bundle 1.1.0 --name orgs/demo/apps/com.example.demo/1.1.0.zip --json
//     rm -r node_modules
//
// A published version never changes, so a real project would raise the version as well (VERSION here, package.json, the
// heading of index.html). The zip carries the times of the files: made on another day it has another checksum.
//
// Delta files are as Capgo's upload makes them: a file of at least 8192 bytes is stored brotli-compressed if that is
// smaller, and then its name and its key end in ".br"; devices decode it and compare the SHA-256. The key holds that same
// hash here. (The upload puts the hash of the hash's text there. To an edge and to devices a key is opaque.)

import { createHash } from 'node:crypto';
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { brotliCompressSync, brotliDecompressSync, inflateRawSync } from 'node:zlib';

const APP_ID = 'com.example.demo';
const VERSION = '1.1.0';
const VERSION_ID = 1010;
const MIN_COMPRESSED_SIZE = 8192;

const root = dirname(fileURLToPath(import.meta.url));
const appKey = `orgs/demo/apps/${APP_ID}`;
const zipKey = `${appKey}/${VERSION}.zip`;
const deltaKey = `${appKey}/delta`;

const inRoot = (key) => join(root, ...key.split('/'));
const sha256 = (data) => createHash('sha256').update(data).digest('hex');

/** The files below a folder, as a map from path (with "/") to content, in the order of their paths. */
function readTree(folder) {
  const paths = readdirSync(folder, { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile())
    .map((entry) => join(entry.parentPath ?? entry.path, entry.name).slice(folder.length + 1).replaceAll('\\', '/'));
  return new Map(paths.sort().map((path) => [path, readFileSync(join(folder, path))]));
}

/** The files in a zip, in the same form. It reads what the upload tool writes: no zip64, no encryption. */
function readZip(zip) {
  const files = new Map();
  const end = zip.lastIndexOf('PK\x05\x06');
  let at = zip.readUInt32LE(end + 16);
  for (let left = zip.readUInt16LE(end + 10); left > 0; left--) {
    const method = zip.readUInt16LE(at + 10);
    const size = zip.readUInt32LE(at + 20);
    const nameLength = zip.readUInt16LE(at + 28);
    const header = zip.readUInt32LE(at + 42);
    const path = zip.toString('utf8', at + 46, at + 46 + nameLength);
    if (!path.endsWith('/')) {
      const start = header + 30 + zip.readUInt16LE(header + 26) + zip.readUInt16LE(header + 28);
      const data = zip.subarray(start, start + size);
      files.set(path, method === 0 ? data : inflateRawSync(data));
    }
    at += 46 + nameLength + zip.readUInt16LE(at + 30) + zip.readUInt16LE(at + 32);
  }
  return files;
}

/** Where two trees differ first, or undefined. */
function difference(a, b) {
  return [...new Set([...a.keys(), ...b.keys()])].find((path) => !a.has(path) || !b.has(path) || !a.get(path).equals(b.get(path)));
}

function decodesTo(data, content) {
  try {
    return brotliDecompressSync(data).equals(content);
  } catch {
    return false;
  }
}

/** Writes the delta file of one file of the app, and returns its row of the manifest. */
function storeFile(path, content) {
  const hash = sha256(content);
  const packed = content.length >= MIN_COMPRESSED_SIZE ? brotliCompressSync(content) : content;
  const compressed = packed.length < content.length;
  const fileName = compressed ? `${path}.br` : path;
  const key = `${deltaKey}/${hash}_${fileName.split('/').map(encodeURIComponent).join('/')}`;
  const target = inRoot(key);

  let stored = compressed ? packed : content;
  if (compressed && existsSync(target)) {
    // The object behind a key never changes, not even when another release of Node.js compresses differently.
    const old = readFileSync(target);
    if (decodesTo(old, content)) stored = old;
  }
  mkdirSync(dirname(target), { recursive: true });
  writeFileSync(target, stored);
  return { file_name: fileName, file_hash: hash, s3_path: key, file_size: stored.length };
}

const app = readTree(join(root, 'app'));
const zip = readFileSync(inRoot(zipKey));
const stale = difference(app, readZip(zip));
if (stale !== undefined) {
  console.error(`${stale} is not the same in app/ and in ${zipKey}; make the zip anew as the head of build.mjs shows`);
  process.exit(1);
}

const files = [...app].map(([path, content]) => storeFile(path, content));
const wanted = new Set(files.map((file) => file.s3_path));
for (const path of readTree(inRoot(deltaKey)).keys()) {
  if (!wanted.has(`${deltaKey}/${path}`)) rmSync(inRoot(`${deltaKey}/${path}`));
}

const manifest = {
  $schema: '../../../resolver/manifest.schema.json',
  app: { app_id: APP_ID, expose_metadata: true },
  versions: [
    {
      id: VERSION_ID,
      name: VERSION,
      r2_path: zipKey,
      checksum: sha256(zip),
      session_key: null,
      link: 'https://github.com/capgo-edge/capgo-edge',
      comment: 'Shows what runs on this device and what the edge offers',
      manifest: files,
    },
  ],
  channels: [
    { id: 1, name: 'production', version: VERSION_ID, public: true, disable_auto_update: 'major' },
    { id: 2, name: 'beta', version: VERSION_ID, public: false, allow_device_self_set: true },
  ],
};
mkdirSync(inRoot('manifests'), { recursive: true });
writeFileSync(inRoot(`manifests/${APP_ID}.json`), `${JSON.stringify(manifest, null, 2)}\n`);
