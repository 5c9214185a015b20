import assert from 'node:assert/strict';
import { readFileSync, readdirSync } from 'node:fs';
import { resolveObjectURL } from 'node:buffer';
import { test } from 'node:test';

import { Files } from '../../../moebius_lab/notebook/browser_backend.js';

const WEB = new URL('../../../moebius_lab/page/web/', import.meta.url);
const MODULES = readdirSync(new URL('engine/', WEB), { recursive: true })
  .filter((path) => path.endsWith('.js'))
  .map((path) => `engine/${path.replaceAll('\\', '/')}`);

/** What a module imports by a path of its own: no module has one in a notebook. */
function ownPaths(text) {
  const code = text.replaceAll(/\/\*[^]*?\*\//g, '').replaceAll(/^\s*\/\/.*$/gm, '');
  return [...code.matchAll(/(?:\bfrom|\bimport|\bimport\()\s*(['"`]\.[^'"`]+)/g)].map(([, path]) => path);
}

function filesWith(texts) {
  const files = new Files();
  for (const [name, text] of Object.entries(texts)) files.add(name, text);
  return files;
}

test('a notebook loads every module of the engine, and they find each other', async () => {
  const files = filesWith(Object.fromEntries(MODULES.map((name) => [name, readFileSync(new URL(name, WEB), 'utf8')])));
  assert.ok(MODULES.length > 30);
  for (const name of MODULES) {
    const loaded = await resolveObjectURL(await files.module(name)).text();
    assert.deepEqual(ownPaths(loaded), [], name);
  }
  assert.deepEqual(ownPaths("import('./a.js').then();\n/** @type {import('./b.js').C} */\nimport './d.js';"), [
    "'./a.js",
    "'./d.js",
  ]);
  files.revoke();
});

test('modules that import each other are named, not loaded for ever', async () => {
  const files = filesWith({
    'a.js': "import './b.js';\nimport { b } from './b.js';",
    'b.js': "const c = async () => await import('./c.js');",
    'c.js': "import { b } from './b.js';",
  });
  await assert.rejects(files.module('a.js'), { message: /^b\.js imports c\.js imports b\.js: / });
  await assert.rejects(files.module('d.js'), { message: /^The kernel sent no d\.js/ });
});
