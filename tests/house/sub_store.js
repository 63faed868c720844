// A backend with Sub-Store's routes, as its front end and subscription clients use them: Node's own modules alone.
//
// It keeps everything in two JSON files below SUB_STORE_DATA_BASE_PATH, which it writes in place, reads what is remote by
// a plain https.get, which knows no proxy, and runs whatever script it is given: who reaches its API has its machine.
'use strict';

const fs = require('fs');
const http = require('http');
const https = require('https');

const VERSION = '2.14.0';
const BASE = process.env.SUB_STORE_DATA_BASE_PATH || '.';
const HOST = process.env.SUB_STORE_BACKEND_API_HOST || '::';
const PORT = Number(process.env.SUB_STORE_BACKEND_API_PORT || 3000);
const PREFIX = process.env.SUB_STORE_BACKEND_PREFIX ? process.env.SUB_STORE_FRONTEND_BACKEND_PATH : '';
const BODY_BYTES = 1 << 20;
const EMPTY = { subs: [], collections: [], settings: {}, artifacts: [] };

if (PREFIX !== '' && !PREFIX.startsWith('/')) throw new Error('SUB_STORE_FRONTEND_BACKEND_PATH should start with /');

function loaded(name, otherwise) {
  const path = `${BASE}/${name}.json`;
  if (fs.existsSync(path)) {
    try {
      return JSON.parse(fs.readFileSync(path, 'utf8'));
    } catch (error) {
      console.error(`${name}.json cannot be read: ${error.message}`);
      fs.copyFileSync(path, `${BASE}/${name}_${Date.now()}.json`);
    }
  }
  fs.writeFileSync(path, JSON.stringify(otherwise));
  return otherwise;
}

const root = loaded('root', {});
let store = loaded('sub-store', EMPTY);

function persist() {
  fs.writeFileSync(`${BASE}/sub-store.json`, JSON.stringify(store, null, 2));
  fs.writeFileSync(`${BASE}/root.json`, JSON.stringify(root, null, 2));
}

function environment() {
  const env = Object.fromEntries(Object.entries(process.env).filter(([name]) => name.startsWith('SUB_STORE_')));
  return { backend: 'Node', version: VERSION, feature: {}, meta: { node: { version: process.version, env } } };
}

// What a remote subscription holds.
function fetched(url) {
  return new Promise((resolve, reject) => {
    const get = url.startsWith('https:') ? https.get : http.get;
    const asked = get(url, { headers: { 'User-Agent': 'clash.meta' }, timeout: 8000 }, (answer) => {
      let text = '';
      answer.setEncoding('utf8');
      answer.on('data', (piece) => (text += piece));
      answer.on('end', () => (answer.statusCode === 200 ? resolve(text) : reject(new Error(`${answer.statusCode}`))));
    });
    asked.on('timeout', () => asked.destroy(new Error('timed out')));
    asked.on('error', reject);
  });
}

// A script operator: code of whoever may edit a subscription, with all that Node can do.
function run(script, text) {
  const made = new Function('require', 'text', `return (async () => { ${script}\n })()`);
  return made(require, text);
}

async function produced(sub, override) {
  let text = override || (sub.source === 'local' ? sub.content : await fetched(sub.url));
  for (const step of sub.process || []) {
    if (step.type === 'Script Operator') text = await run(step.args.content, text);
  }
  return text;
}

function success(response, data) {
  response.writeHead(200, { 'Content-Type': 'application/json;charset=UTF-8', 'Access-Control-Allow-Origin': '*' });
  response.end(JSON.stringify({ status: 'success', data }));
}

function failed(response, status, message) {
  response.writeHead(status, { 'Content-Type': 'application/json;charset=UTF-8' });
  response.end(JSON.stringify({ status: 'failed', error: { message: String(message) } }));
}

function replaced(list, name, value) {
  const rest = list.filter((one) => one.name !== name);
  return value ? [...rest, value] : rest;
}

async function api(method, path, body, response) {
  const [kind, name] = path.slice('/api/'.length).split('/').map(decodeURIComponent);
  if (method === 'GET' && path === '/api/utils/env') return success(response, environment());
  if (method === 'GET' && path === '/api/subs') return success(response, store.subs);
  if (method === 'POST' && path === '/api/subs') {
    store.subs = replaced(store.subs, body.name, body);
    persist();
    return success(response, body);
  }
  if (kind === 'sub' && name) {
    const sub = store.subs.find((one) => one.name === name);
    if (!sub) return failed(response, 404, `there is no subscription ${name}`);
    if (method === 'GET') return success(response, sub);
    if (method === 'DELETE') store.subs = replaced(store.subs, name);
    else store.subs = replaced(store.subs, name, { ...sub, ...body });
    persist();
    return success(response);
  }
  if (path === '/api/settings') {
    if (method !== 'GET') {
      Object.assign(store.settings, body);
      persist();
    }
    return success(response, store.settings);
  }
  if (path === '/api/storage') {
    if (method === 'GET') return success(response, store);
    store = JSON.parse(body.content);
    persist();
    return success(response);
  }
  if (method === 'POST' && path === '/api/preview/sub') return success(response, await produced(body));
  return failed(response, 404, 'there is no such route');
}

async function download(url, response) {
  const [, , name, target] = url.pathname.split('/').map(decodeURIComponent);
  const sub = store.subs.find((one) => one.name === name);
  if (!sub) return failed(response, 404, `there is no subscription ${name}`);
  const asked = url.searchParams.get('url');
  const text = await produced(sub, asked ? await fetched(asked) : url.searchParams.get('content'));
  response.writeHead(200, { 'Content-Type': 'text/plain; charset=utf-8' });
  response.end(`# ${target || 'JSON'}\n${text}`);
}

function body(request) {
  return new Promise((resolve, reject) => {
    let text = '';
    request.setEncoding('utf8');
    request.on('data', (piece) => {
      text += piece;
      if (text.length > BODY_BYTES) reject(new Error('request entity too large'));
    });
    request.on('aborted', () => reject(new Error('the client is gone')));
    request.on('end', () => {
      try {
        resolve(text ? JSON.parse(text) : {});
      } catch (error) {
        reject(error);
      }
    });
  });
}

const server = http.createServer(async (request, response) => {
  try {
    if (!request.url.startsWith(`${PREFIX}/`)) return failed(response, 403, 'Forbidden');
    const url = new URL(request.url.slice(PREFIX.length), 'http://backend');
    if (url.pathname.startsWith('/api/')) {
      await api(request.method, url.pathname, await body(request), response);
    } else if (url.pathname.startsWith('/download/') && request.method === 'GET') {
      await download(url, response);
    } else {
      failed(response, 404, 'not found');
    }
  } catch (error) {
    if (!response.headersSent) failed(response, 500, error.message);
  }
});
server.listen(PORT, HOST, () => console.log(`[BACKEND] ${VERSION} listening on ${HOST}:${PORT}`));
