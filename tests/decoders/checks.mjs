// What the module does besides decoding whole files: sources, rows, limits, and what it exposes.
import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import { createServer } from "node:http";
import { test } from "node:test";
import { inflateSync } from "node:zlib";
import { open, WcodecError } from "../../decoders/js/wcodec.js";

const VECTORS = new URL("../../conformance_vectors/", import.meta.url);
const { cases } = JSON.parse(readFileSync(new URL("manifest.json", VECTORS)));
const row = (id) => cases.find((c) => c.id === id);
const load = (id) => new Uint8Array(readFileSync(new URL(`${id}.wcodec`, VECTORS)));
const sha256 = (bytes) => createHash("sha256").update(bytes).digest("hex");
const hasCode = (code) => (e) => e instanceof WcodecError && e.code === code;

/** Bytes as a source that counts what is read of them. */
function counting(bytes) {
  const source = {
    size: bytes.length,
    nRead: 0,
    read: async (offset, n) => {
      source.nRead += n;
      return bytes.slice(offset, offset + n);
    },
  };
  return source;
}

/** Serves `state.bytes` at http://127.0.0.1, as `state` says, while `use` runs. */
async function serving(state, use) {
  state.requests = [];
  const server = createServer((request, response) => {
    const [, from, to] = /^bytes=(\d+)-(\d+)$/.exec(request.headers.range ?? "") ?? [];
    state.requests.push(request.headers.range);
    const headers = { ETag: state.etag };
    if (from === undefined || !state.ranges) {
      response.writeHead(200, { ...headers, "Content-Length": state.size ?? state.bytes.length });
      response.end(state.bytes);
      return;
    }
    const part = state.bytes.subarray(Number(from), Number(to) + 1);
    const range = `bytes ${from}-${Number(from) + part.length - 1}/${state.bytes.length}`;
    response.writeHead(206, { ...headers, "Content-Range": range });
    response.end(part);
  });
  await new Promise((done) => { server.listen(0, "127.0.0.1", done); });
  try {
    await use(`http://127.0.0.1:${server.address().port}/model.wcodec`);
  } finally {
    server.closeAllConnections?.();
    server.close();
  }
}

test("all kinds of sources give the same", async () => {
  const bytes = load("accept/base_records"), due = row("accept/base_records");
  const buffer = bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.length);
  const shifted = new Uint8Array(bytes.length + 1).subarray(1); // at an odd address
  shifted.set(bytes);
  const same = async (source) => {
    const pieces = [];
    await (await open(source)).restore((piece) => { pieces.push(piece); });
    assert.equal(sha256(Buffer.concat(pieces)), due.restored_sha256);
  };
  for (const source of [bytes, buffer, shifted, Buffer.from(bytes), new Blob([bytes])]) {
    await same(source);
  }
  await same(counting(bytes));
  await same(counting(Buffer.from(bytes)));
  for (const ranges of [true, false]) {
    await serving({ bytes, ranges, etag: '"1"' }, async (url) => {
      await same(url);
      await same(new URL(url));
    });
  }
  await assert.rejects(open(5), TypeError);
});

test("a server is asked for ranges alone, and watched for changes", async () => {
  const state = { bytes: load("accept/base_records"), ranges: true, etag: '"1"' };
  await serving(state, async (url) => {
    const file = await open(url), [t] = file.tensors.filter((x) => x.nbytes > 0);
    assert.ok(state.requests.every((r) => r !== undefined));
    await file.tensor(t.name);
    state.etag = '"2"';
    await assert.rejects(file.tensor(t.name), hasCode("changed"));
    state.etag = '"1"';
    state.ranges = false;
    await assert.rejects(file.tensor(t.name), hasCode("changed"));
  });
  await serving({ ...state, ranges: false, size: 2 ** 25 }, async (url) => {
    await assert.rejects(open(url), /gives no ranges/);
  });
});

test("rows are those of the tensor, from the segments that hold them", async () => {
  let nChecked = 0;
  for (const c of cases.filter((x) => x.expect === "accept")) {
    const base = c.base_checkpoint && await open(load(c.base_checkpoint));
    const source = counting(load(c.id)), file = await open(source, { base });
    for (const t of file.tensors.filter((x) => x.shape.length > 0 && x.shape[0] > 1)) {
      if (t.nbytes > 1e5) continue;
      const n = t.shape[0], whole = await file.tensor(t.name);
      for (const [begin, end] of [[0, 1], [n >> 1, n], [n - 1, n], [1, 1], [0, n]]) {
        const part = await file.rows(t.name, begin, end), size = t.nbytes / n;
        assert.deepEqual(part.bytes, whole.bytes.slice(begin * size, end * size), c.id);
        assert.deepEqual(part.shape, [end - begin, ...t.shape.slice(1)]);
        nChecked += 1;
      }
      if (t.sparse) continue;
      source.nRead = 0;
      await file.rows(t.name, 0, 1);
      const isNeeded = ({ row, col }) => t.rowRank ? row < t.rows / n : col < t.cols / n;
      const needed = [...file.segments(t.name)].filter(isNeeded);
      assert.equal(source.nRead, needed.reduce((sum, s) => sum + s.nbytes, 0), c.id);
    }
  }
  assert.ok(nChecked > 500);
  const file = await open(load("accept/base_records")), { name, shape: [n] } = file.tensors[0];
  for (const [begin, end] of [[-1, 1], [0, n + 1], [2, 1], [0.5, 1]]) {
    await assert.rejects(file.rows(name, begin, end), RangeError);
  }
  await assert.rejects(file.tensor("no such"), RangeError);
});

test("values look at the bytes", async () => {
  const views = new Map();
  for (const c of cases.filter((x) => x.expect === "accept" && !x.base_checkpoint)) {
    const file = await open(load(c.id));
    for (const t of file.tensors.filter((x) => x.nbytes < 1e5)) {
      const { bytes, values } = await file.tensor(t.name);
      assert.equal(bytes.length, t.nbytes);
      if (values) assert.equal(values.byteLength, t.nbytes);
      views.set(t.dtype, values?.constructor.name);
    }
  }
  assert.equal(views.size, 21);
  assert.equal(views.get("int64"), "BigInt64Array");
  assert.equal(views.get("complex64"), "Float32Array");
  assert.equal(views.get("bfloat16"), undefined);
});

test("sizes and segments add up", async () => {
  for (const c of cases.filter((x) => x.expect === "accept")) {
    const bytes = load(c.id);
    const file = await open(bytes);
    assert.equal(file.nbytes, bytes.length);
    assert.deepEqual(Object.fromEntries(file.metadata), c.metadata ?? {});
    assert.deepEqual(file.tensors.map(({ name, dtype }) => [name, dtype]),
      c.tensors.map(({ name, dtype }) => [name, dtype]));
    let stored = 32 + file.indexNbytes + 64;
    for (const t of file.tensors) {
      stored += t.payloadNbytes;
      let nWords = 0, nbytes = 0;
      for (const s of file.segments(t.name)) {
        nWords += s.rows * s.cols;
        nbytes += s.nbytes;
        if (!t.sparse) assert.equal(s.nbytes, s.record.nbytes);
      }
      assert.equal(nWords, t.nWords, c.id);
      if (t.duplicateOf === null) assert.equal(nbytes, t.payloadNbytes, c.id);
    }
    assert.equal(stored, file.nbytes, c.id);
    assert.ok(Object.isFrozen(file) && Object.isFrozen(file.tensors));
  }
});

test("verify reports progress, and finds a flipped bit", async () => {
  const bytes = load("accept/base_records"), seen = [];
  const file = await open(bytes);
  await file.verify((done, all) => { seen.push([done, all]); });
  assert.deepEqual(seen.at(-1), [file.dataNbytes, file.dataNbytes]);
  const { payloadOffset, name } = file.tensors.find((t) => t.payloadNbytes > 0);
  bytes[payloadOffset] ^= 1;
  await assert.rejects(file.verify(), (e) => hasCode("bad_checksum")(e) && e.tensor === name);
});

test("bases", async () => {
  const id = "accept/base_difference", { base_checkpoint: baseId } = row(id);
  const file = await open(load(id)), base = await open(load(baseId)), { name } = file.tensors[0];
  assert.equal(base.contentHash, file.base.contentHash);
  assert.equal(sha256((await file.tensor(name, { base })).bytes), row(id).tensors[0].sha256);
  await file.verify(undefined, { base });
  await assert.rejects(file.tensor(name), hasCode("bad_base"));
  await assert.rejects(file.verify(undefined, { base: file }), hasCode("bad_base"));
});

test("memory is limited, and reads are not short", async () => {
  const bytes = load("accept/base_records");
  await assert.rejects(open(bytes, { memoryLimit: 100 }), hasCode("resource_limit"));
  const file = await open(bytes, { memoryLimit: 1e5 });
  await assert.rejects(file.tensor(file.tensors.find((t) => t.nbytes).name),
    hasCode("resource_limit"));
  const short = { size: bytes.length, read: async (at, n) => bytes.slice(at, at + n - 1) };
  await assert.rejects(open(short), hasCode("truncated"));
});

/** What the Compression Standard has browsers do: errors without codes, and none may follow. */
class BrowserStream {
  constructor() {
    let isCut = true;
    const transform = (chunk, controller) => {
      try {
        const { buffer, engine } = inflateSync(chunk, { info: true });
        isCut = false;
        controller.enqueue(new Uint8Array(buffer));
        if (engine.bytesWritten < chunk.length) throw new Error("junk");
      } catch (e) {
        if (e.code !== "Z_BUF_ERROR") throw new TypeError(e.message);
      }
    };
    const flush = () => { if (isCut) throw new TypeError("cut"); };
    return new TransformStream({ transform, flush });
  }
}

test("browsers inflate as Node does", async (t) => {
  const there = globalThis.DecompressionStream;
  t.after(() => { globalThis.DecompressionStream = there; });
  globalThis.DecompressionStream = BrowserStream;
  const inflated = cases.filter((c) => c.rules.includes("R4.15"));
  assert.ok(inflated.some((c) => c.code === "bad_stream") && inflated.some((c) => !c.code));
  for (const c of inflated) {
    if (c.code) await assert.rejects(open(load(c.id)), hasCode(c.code), c.id);
    else await open(load(c.id));
  }
});
