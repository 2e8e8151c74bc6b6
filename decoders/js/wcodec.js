/**
 * A decoder of wcodec files (spec/wcodec.md) for browsers and Node, without dependencies. The
 * numbers of the spec's rules stand beside what follows from them.
 */

/**
 * @typedef {Uint8Array | ArrayBuffer | Blob | string | URL | RandomAccess} Source  Texts are URLs.
 * @typedef {{size: number, read: (offset: number, nbytes: number) => Promise<Uint8Array>}}
 *   RandomAccess  `read` gives exactly `nbytes` bytes.
 * @typedef {{memoryLimit?: number, base?: WcodecFile, fetch?: typeof fetch,
 *   headers?: Record<string, string>}} Options
 *   `memoryLimit`: bytes that the index, and a call for a tensor or rows, may take; 4 GiB unless
 *   given. `base`: for all calls that give none. `fetch`, `headers`: for URLs.
 * @typedef {{base?: WcodecFile}} BaseOption  The open checkpoint that differences refer to; if it
 *   holds differences too, it has been opened with its own base.
 * @typedef {{name: string, dtype: string, shape: (number | bigint)[], bytes: Uint8Array,
 *   values: ArrayBufferView | null}} Decoded
 *   `values` looks at the same memory, as numbers; null for dtypes without a typed array. Complex
 *   numbers are pairs.
 * @typedef {{name: string, dtype: string, dtypeId: number, dtypeName: string,
 *   safetensorsDtype: string, shape: (number | bigint)[], nWords: number, wordNbytes: number,
 *   nbytes: number, payloadOffset: number, payloadNbytes: number, bitsPerWeight: number,
 *   crc32: number, rows: number, cols: number, rowRank: number, segmentRows: number,
 *   segmentCols: number, tileRows: number, tileCols: number, nSegments: number,
 *   difference: "none" | "xor" | "minus", sparse: boolean, duplicateOf: number | null}} TensorInfo
 *   Of a duplicate all is that of the tensor it repeats, but `payloadNbytes` and `bitsPerWeight`
 *   are 0. Dimensions above 2^53, which only tensors without elements have, are bigint.
 * @typedef {{coder: string, table: number | null, contextMap: number | null,
 *   constant: number | null, mode: string, nbytes: number}} PlaneInfo
 * @typedef {{layout: string, base: number, nPatches: number, nbytes: number, crc32: number,
 *   planes: PlaneInfo[]}} RecordInfo
 * @typedef {{row: number, col: number, rows: number, cols: number, nbytes: number,
 *   nListed: number | null, record: RecordInfo | null, gaps: RecordInfo | null}} SegmentInfo
 *   `gaps` and `nListed` are of sparse tensors, and `record` is then of the listed words.
 */

/** What is wrong with a file, or with reading it. `code` is one of chapter 13, or `changed`. */
export class WcodecError extends Error {
  /** @param {string} code @param {string} message @param {string} [tensor] */
  constructor(code, message, tensor) {
    super(message);
    this.name = "WcodecError";
    this.code = code;
    this.tensor = tensor;
  }
}

function fail(code, message) {
  throw new WcodecError(code, message);
}

function check(ok, code, message) {
  if (!ok) fail(code, message);
}

// ---- chapters 2 and 18: registries --------------------------------------------------------------
const RAW = 0, BYTES = 1, PAIRS = 2; // layouts, R5.3
const CONSTANT = 1, RANS = 2, CONTEXT = 4; // coders, R10.5; RAW is 0 here too
const PLANE = 1, POSITION = 2, SCALE = 3; // kinds of context maps, R9.13
const XOR = 1, MINUS = 2; // differences, R12.5
const OWN_MODES = 255;
const LAYOUTS = ["RAW", "BYTES", "PAIRS"];
const CODERS = ["RAW", "CONSTANT", "RANS", "", "CONTEXT"];
const KINDS = ["", "PLANE", "POSITION", "SCALE"];
const N_CONTEXTS = [0, 256, 64, 16];
const PREDICTIONS = ["NONE", "LEFT", "TOP", "AVG", "PLANAR"];
const TRANSFORMS = ["", "DCT", "ADST"];
const DIFFERENCES = ["none", "xor", "minus"];

const DTYPES = `
opaque - 1 1 IDENTITY
bool BOOL 1 1 IDENTITY Uint8Array
uint8 U8 1 1 IDENTITY Uint8Array
int8 I8 1 1 OFFSET Int8Array
uint16 U16 2 1 IDENTITY Uint16Array
int16 I16 2 1 OFFSET Int16Array
uint32 U32 4 1 IDENTITY Uint32Array
int32 I32 4 1 OFFSET Int32Array
uint64 U64 8 1 IDENTITY BigUint64Array
int64 I64 8 1 OFFSET BigInt64Array
float16 F16 2 1 IDENTITY Float16Array
bfloat16 BF16 2 1 EXPONENT_FIRST_8
float32 F32 4 1 EXPONENT_FIRST_8 Float32Array
float64 F64 8 1 IDENTITY Float64Array
float8_e4m3fn F8_E4M3 1 1 EXPONENT_FIRST_4
float8_e5m2 F8_E5M2 1 1 EXPONENT_FIRST_5
float8_e8m0fnu F8_E8M0 1 1 IDENTITY
float8_e4m3fnuz F8_E4M3FNUZ 1 1 EXPONENT_FIRST_4
float8_e5m2fnuz F8_E5M2FNUZ 1 1 EXPONENT_FIRST_5
complex64 C64 4 2 EXPONENT_FIRST_8 Float32Array
complex128 C128 8 2 IDENTITY Float64Array`.trim().split("\n").map((line, id) => {
  const [name, safetensors, wordNbytes, nWords, map, array] = line.split(" ");
  return {
    id, name, array,
    safetensors: id ? safetensors : "",
    wordNbytes: Number(wordNbytes),
    wordsPerElement: Number(nWords),
    offset: map === "OFFSET",
    exponentBits: map.startsWith("EXPONENT") ? Number(map.slice(-1)) : 0,
  };
});
const UNSIGNED = { 1: DTYPES[2], 2: DTYPES[4], 4: DTYPES[6], 8: DTYPES[8] };

const pad16 = (n) => Math.ceil(n / 16) * 16; // R2.4
const isMode = (mode) => (mode & 15) <= 4 && mode >> 4 <= 2; // R7.1
const modeName = (mode) => mode === OWN_MODES ? "per tile"
  : (mode >> 4 ? `${TRANSFORMS[mode >> 4]}+` : "") + PREDICTIONS[mode & 15];

function text(bytes) {
  try {
    return new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes);
  } catch {
    return fail("bad_name", "a text is not UTF-8"); // R2.6
  }
}

/** Memory that something may take, and has taken. */
class Budget {
  constructor(limit) {
    this.left = limit;
  }

  take(nbytes) {
    this.left -= nbytes;
    if (!(this.left >= 0)) fail("resource_limit", "more memory is needed than memoryLimit allows");
  }
}

function allocate(nbytes) {
  try {
    return new Uint8Array(nbytes);
  } catch {
    return fail("resource_limit", `no memory for ${nbytes} bytes`);
  }
}

/** Reads integers from bytes, and never beyond them. */
class Cursor {
  constructor(bytes) {
    this.data = bytes;
    this.view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    this.at = 0;
  }

  get left() {
    return this.data.length - this.at;
  }

  skip(nbytes, code = "bad_range") {
    if (!(nbytes <= this.left)) fail(code, "a record is cut short"); // R4.17, R4.30
    const at = this.at;
    this.at += nbytes;
    return at;
  }

  u8(code) { return this.view.getUint8(this.skip(1, code)); }
  u16() { return this.view.getUint16(this.skip(2), true); }
  u32() { return this.view.getUint32(this.skip(4), true); }
  u64() { return this.view.getBigUint64(this.skip(8), true); }
  text(nbytes) { return text(this.bytes(nbytes)); }

  bytes(nbytes, code) {
    const at = this.skip(nbytes, code);
    return this.data.subarray(at, at + nbytes);
  }

  array(width, n) {
    const copy = this.bytes(width * n).slice().buffer;
    if (width === 1) return new Uint8Array(copy);
    return width === 2 ? new Uint16Array(copy) : new Uint32Array(copy);
  }

  end(what) {
    check(this.left === 0, "bad_range", `${what}: bytes are left over`);
  }
}

// ---- chapter 11: checksums ----------------------------------------------------------------------
const CRC = new Int32Array(8 * 256);
for (let i = 0; i < 256; i++) {
  let c = i;
  for (let k = 0; k < 8; k++) c = c & 1 ? c >>> 1 ^ 0xEDB88320 : c >>> 1;
  CRC[i] = c;
}
for (let i = 256; i < CRC.length; i++) CRC[i] = CRC[i - 256] >>> 8 ^ CRC[CRC[i - 256] & 255];

/** The CRC-32 of R11.1, eight bytes at a time; `crc` is that of what comes before. */
function crc32(bytes, crc = 0) {
  const n = bytes.length;
  let c = ~crc, i = 0;
  for (; i + 8 <= n; i += 8) {
    c ^= bytes[i] | bytes[i + 1] << 8 | bytes[i + 2] << 16 | bytes[i + 3] << 24;
    c = CRC[1792 + (c & 255)] ^ CRC[1536 + (c >>> 8 & 255)] ^ CRC[1280 + (c >>> 16 & 255)]
      ^ CRC[1024 + (c >>> 24)] ^ CRC[768 + bytes[i + 4]] ^ CRC[512 + bytes[i + 5]]
      ^ CRC[256 + bytes[i + 6]] ^ CRC[bytes[i + 7]];
  }
  for (; i < n; i++) c = CRC[(c ^ bytes[i]) & 255] ^ c >>> 8;
  return ~c >>> 0;
}

const isPrime = (n) => {
  for (let d = 2; d * d <= n; d++) if (n % d === 0) return false;
  return true;
};
const PRIMES = Array.from({ length: 312 }, (_, i) => i).filter((n) => n > 1 && isPrime(n));
const fraction = (x) => (x - Math.floor(x)) * 2 ** 32 | 0;

/** SHA-256 (FIPS 180-4) in hexadecimal. `crypto.subtle` has it only on secure pages. */
function sha256(bytes) {
  const k = PRIMES.slice(0, 64).map((p) => fraction(Math.cbrt(p)));
  const hash = Int32Array.from(PRIMES.slice(0, 8), (p) => fraction(Math.sqrt(p)));
  const data = new Uint8Array(Math.ceil((bytes.length + 9) / 64) * 64);
  data.set(bytes);
  data[bytes.length] = 0x80;
  const view = new DataView(data.buffer);
  view.setBigUint64(data.length - 8, BigInt(bytes.length) * 8n);
  const w = new Int32Array(64);
  const rotate = (x, n) => x >>> n | x << 32 - n;
  for (let at = 0; at < data.length; at += 64) {
    let [a, b, c, d, e, f, g, h] = hash;
    for (let i = 0; i < 64; i++) {
      const p = w[i - 15], q = w[i - 2];
      w[i] = i < 16 ? view.getInt32(at + 4 * i)
        : w[i - 16] + w[i - 7] + (rotate(p, 7) ^ rotate(p, 18) ^ p >>> 3)
          + (rotate(q, 17) ^ rotate(q, 19) ^ q >>> 10);
      const t = h + (rotate(e, 6) ^ rotate(e, 11) ^ rotate(e, 25)) + (e & f ^ ~e & g) + k[i] + w[i];
      const u = (rotate(a, 2) ^ rotate(a, 13) ^ rotate(a, 22)) + (a & b ^ a & c ^ b & c);
      [a, b, c, d, e, f, g, h] = [t + u | 0, a, b, c, d + t | 0, e, f, g];
    }
    [a, b, c, d, e, f, g, h].forEach((x, i) => { hash[i] += x; });
  }
  return hex(Uint8Array.from({ length: 32 }, (_, i) => hash[i >> 2] >>> 24 - 8 * (i & 3)));
}

const hex = (bytes) => Array.from(bytes, (b) => b.toString(16).padStart(2, "0")).join("");

/** Orders names by the bytes of their UTF-8. */
function compareBytes(a, b) {
  for (let i = 0; i < a.length && i < b.length; i++) if (a[i] !== b[i]) return a[i] - b[i];
  return a.length - b.length;
}

/** The content hash of R11.4. */
function contentHash(tensors) {
  const parts = tensors.map((t) => {
    const name = new TextEncoder().encode(t.name);
    const part = new Uint8Array(4 + name.length + 2 + 8 * t.shape.length + 4);
    const view = new DataView(part.buffer);
    view.setUint32(0, name.length, true);
    part.set(name, 4);
    part.set([t.dtype.id, t.shape.length], 4 + name.length);
    t.shape.forEach((n, i) => view.setBigUint64(6 + name.length + 8 * i, BigInt(n), true));
    view.setUint32(part.length - 4, t.crc32, true);
    return { name, part };
  });
  parts.sort((a, b) => compareBytes(a.name, b.name));
  const all = new Uint8Array(parts.reduce((n, { part }) => n + part.length, 0));
  let at = 0;
  for (const { part } of parts) {
    all.set(part, at);
    at += part.length;
  }
  return sha256(all);
}

// ---- chapter 4: header, footer, index -----------------------------------------------------------
const MAGIC = [0x89, 0x57, 0x43, 0x4F, 0x44, 0x45, 0x43, 0x0A];
const END_MAGIC = [0x57, 0x43, 0x4F, 0x44, 0x45, 0x43, 0x46, 0x54];
const HEADER_NBYTES = 32, FOOTER_NBYTES = 64;

function checkHeader(bytes, fileNbytes) {
  const n = Math.min(bytes.length, 8);
  check(MAGIC.slice(0, n).every((b, i) => b === bytes[i]), "bad_magic", "magic"); // R4.2
  check(bytes.length >= HEADER_NBYTES, "truncated", "the header is cut short"); // R4.2
  const c = new Cursor(bytes);
  c.at = 28;
  check(c.u32() === crc32(bytes.subarray(0, 28)), "bad_checksum", "CRC-32 of the header"); // R4.3
  c.at = 8;
  const major = c.u16(), minor = c.u16();
  check(major === 0 && minor === 2, "unsupported_version", `version ${major}.${minor}`); // R4.4
  check(bytes.subarray(12, 28).every((b) => b === 0), "bad_value", "reserved fields"); // R4.5
  check(fileNbytes >= HEADER_NBYTES + FOOTER_NBYTES, "truncated", "the file is cut short"); // R4.6
}

function readFooter(bytes, fileNbytes) {
  const c = new Cursor(bytes);
  const [indexOffset, indexNbytes, rawNbytes, statedNbytes, dataNbytes] =
    Array.from({ length: 5 }, () => c.u64());
  const nTensors = c.u32(), coding = c.u8(), reserved = c.bytes(3), indexCrc32 = c.u32();
  const crcIsRight = c.u32() === crc32(bytes.subarray(0, 52));
  const magicIsRight = END_MAGIC.every((b, i) => b === bytes[56 + i]);
  check(crcIsRight || magicIsRight, "truncated", "no footer at the end of the file"); // R4.7
  check(crcIsRight, "bad_checksum", "CRC-32 of the footer"); // R4.7
  check(magicIsRight, "bad_magic", "end_magic"); // R4.8
  const size = BigInt(fileNbytes);
  check(statedNbytes <= size, "truncated", "the file is shorter than file_nbytes"); // R4.9
  check(statedNbytes === size, "bad_range", "the file is longer than file_nbytes"); // R4.9
  check(indexOffset >= 32n && indexOffset + indexNbytes + 64n === size, "bad_range",
    "index_offset and index_nbytes do not fit the file"); // R4.10
  check(reserved.every((b) => b === 0), "bad_value", "reserved in the footer"); // R4.11
  check(coding <= 1, "unsupported_coder", `index_coding ${coding}`); // R4.12
  check(coding ? rawNbytes <= 64n * indexNbytes : rawNbytes === indexNbytes, "bad_range",
    "index_raw_nbytes"); // R4.14
  return {
    indexOffset: Number(indexOffset), indexNbytes: Number(indexNbytes),
    rawNbytes: Number(rawNbytes), dataNbytes, nTensors, coding, indexCrc32,
  };
}

/**
 * Inflates one zlib stream: its output, or why there is none. Browsers and Node say in different
 * ways that a stream is cut short: when it is closed, and by an error's code.
 */
async function tryInflate(bytes, rawNbytes) {
  const { readable, writable } = new DecompressionStream("deflate");
  const writer = writable.getWriter(), reader = readable.getReader();
  let closing = false;
  const feeding = writer.write(bytes).then(() => {
    closing = true;
    return writer.close();
  });
  feeding.catch(() => {});
  const out = allocate(rawNbytes);
  let n = 0;
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) break;
      if (n + value.length > rawNbytes) {
        reader.cancel().catch(() => {});
        return { state: "long" };
      }
      out.set(value, n);
      n += value.length;
    }
    await feeding;
    return { state: "done", out: out.subarray(0, n) };
  } catch (e) {
    const isCut = e.code === undefined ? closing : e.code === "Z_BUF_ERROR";
    return { state: isCut ? "cut" : "broken" };
  }
}

/** The index records. Node ignores what follows a zlib stream, and browsers call it broken. */
async function inflate(bytes, rawNbytes) {
  const short = (n) => tryInflate(bytes.subarray(0, n), rawNbytes);
  const { state, out } = await short(bytes.length);
  let hasTail = false;
  if (state === "done") {
    hasTail = bytes.length > 0 && (await short(bytes.length - 1)).state === "done";
  } else if (state === "broken") {
    let good = 0, bad = bytes.length; // the longest beginning in which nothing is broken
    while (bad - good > 1) {
      const middle = (good + bad) >> 1;
      if ((await short(middle)).state === "broken") bad = middle;
      else good = middle;
    }
    hasTail = (await short(good)).state === "done";
  }
  check(state !== "broken" || hasTail, "bad_stream", "the index does not inflate"); // R4.15
  check(!hasTail, "bad_range", "bytes follow the zlib stream of the index"); // R4.15
  check(state === "done" && out.length === rawNbytes, "bad_range", "index_raw_nbytes"); // R4.15
  return out;
}

/** What the index says; memory is counted before it is taken. */
class Index {
  constructor(bytes, footer, budget) {
    this.budget = budget;
    this.tables = [];
    this.maps = [];
    this.tensors = [];
    this.metadata = new Map();
    this.sourceKind = null;
    this.sourceHeader = new Uint8Array(0);
    this.base = null;
    this.unknownRecords = [];
    this.seen = new Set();
    this.names = new Set();
    this.payloadEnd = HEADER_NBYTES;
    this.dataNbytes = 0n;
    const c = new Cursor(bytes);
    while (c.left > 0) this.record(c);
    check(this.payloadEnd === footer.indexOffset, "bad_range", "end of the payloads"); // R4.33
    check(this.tensors.length === footer.nTensors, "bad_range", "n_tensors"); // R4.16
    check(this.dataNbytes === footer.dataNbytes, "bad_range", "data_nbytes"); // R4.16
  }

  record(c) {
    const type = c.u16(), flags = c.u16(), nbytes = c.u64();
    check(flags <= 1, "bad_value", "reserved flags of a record"); // R4.17
    check(nbytes <= BigInt(c.left), "bad_range", "a record leaves the index"); // R4.17
    const body = new Cursor(c.bytes(Number(nbytes)));
    if (type === 0 || type > 7) {
      check(flags === 0, "unsupported_record", `record of type ${type}`); // R4.18
      this.budget.take(100);
      this.unknownRecords.push({ type, nbytes: body.left });
      return;
    }
    if (type !== 4 && type !== 7) this.once(type);
    if (type === 1) this.readTables(body);
    else if (type === 2) this.readSource(body);
    else if (type === 3) this.readMetadata(body);
    else if (type === 4) this.add(readTensor(body, this));
    else if (type === 5) this.readMaps(body);
    else if (type === 6) this.readBase(body);
    else this.readDuplicate(body);
  }

  once(type) {
    check(!this.seen.has(type), "bad_value", "a record of a type that was there"); // R4.19
    this.seen.add(type);
    const isEarly = type !== 1 && type !== 5 && type !== 6 || this.tensors.length === 0;
    check(isEarly, "bad_value", "a record after a TENSOR"); // R4.19
    check(type !== 1 || !this.seen.has(5), "bad_value", "TABLES after CONTEXTS"); // R4.19
  }

  readTables(c) {
    const n = c.u16();
    for (let i = 0; i < n; i++) {
      this.budget.take(800);
      this.tables.push(readTable(c));
    }
    c.end("TABLES"); // R4.20
  }

  readMaps(c) {
    const n = c.u16();
    for (let i = 0; i < n; i++) {
      this.budget.take(700);
      const kind = c.u8(), nClasses = c.u8();
      check(kind >= 1 && kind <= 3, "unsupported_coder", `context map of kind ${kind}`); // R4.25
      check(nClasses >= 1 && nClasses <= 16, "bad_range", "n_classes"); // R4.25
      const classOf = c.array(1, N_CONTEXTS[kind]), numbers = c.array(2, nClasses);
      check(classOf.every((k) => k < nClasses), "bad_range", "class_of"); // R4.25
      check(numbers.every((t) => t < this.tables.length), "bad_range", "a table of a map"); // R4.25
      const tables = Array.from(numbers, (t) => this.tables[t]), { probBits } = tables[0];
      check(tables.every((t) => t.probBits === probBits), "bad_value", "P of a map"); // R4.25
      this.maps.push({ kind, classOf, numbers, tables, probBits, lookup: null });
    }
    c.end("CONTEXTS"); // R4.26
  }

  readSource(c) {
    this.sourceKind = c.u16(); // R4.21
    check(this.sourceKind === 1, "unsupported_record", `source_kind ${this.sourceKind}`); // R4.21
    this.sourceHeader = c.bytes(c.left);
  }

  readMetadata(c) {
    const n = c.u32();
    for (let i = 0; i < n; i++) {
      this.budget.take(200);
      const key = c.text(c.u32());
      check(!this.metadata.has(key), "bad_name", "a key occurs twice"); // R4.23
      this.metadata.set(key, c.text(c.u32()));
    }
    c.end("METADATA"); // R4.24
  }

  readBase(c) {
    this.base = { contentHash: hex(c.bytes(32)), name: c.text(c.left) }; // R4.27
  }

  readDuplicate(c) {
    this.budget.take(700);
    const of = c.u32();
    check(of < this.tensors.length, "bad_range", "a DUPLICATE of no tensor before it"); // R4.28
    const target = this.tensors[of].target ?? this.tensors[of];
    this.add({ ...target, name: c.text(c.left), duplicateOf: of, target });
  }

  add(t) {
    check(!this.names.has(t.name), "bad_name", "a name occurs twice"); // R4.32
    this.names.add(t.name);
    this.tensors.push(t);
    this.dataNbytes += BigInt(t.nbytes);
  }
}

/** A table of R9.7: frequencies of the 256 symbols. */
function readTable(c) {
  const code = "bad_table";
  const probBits = c.u8(code), first = c.u8(code), last = c.u8(code), k = c.u8(code);
  check(probBits >= 9 && probBits <= 12, code, "prob_bits"); // R9.6
  check(first <= last && k <= 11, code, "first, last or k of a table"); // R9.7
  const frequencies = new Uint16Array(256);
  let held = 0, nHeld = 0, sum = 0;
  const bits = (n) => {
    while (nHeld < n) {
      held = (held << 8 | c.u8(code)) & 0xFFFFFF;
      nHeld += 8;
    }
    nHeld -= n;
    return held >>> nHeld & (1 << n) - 1;
  };
  for (let s = first; s <= last; s++) {
    let nZeros = 0;
    while (bits(1) === 0) check(++nZeros <= 12, code, "a code with over 12 leading zeros"); // R9.7
    const value = ((1 << nZeros | bits(nZeros)) - 1) * 2 ** k + bits(k);
    check(value < 2 ** probBits, code, "a frequency of 2^P or more"); // R9.6
    frequencies[s] = value;
    sum += value;
  }
  check(bits(nHeld) === 0, code, "padding bits of a table"); // R9.7
  check(frequencies[first] > 0 && frequencies[last] > 0, code, "first or last of a table"); // R9.7
  check(sum === 2 ** probBits, code, "the frequencies' sum is not 2^P"); // R9.6
  return { probBits, frequencies, lookup: null };
}

/** Geometry of R6.1 to R6.7; numbers are checked as integers of any size. */
function checkGeometry(g, rank) {
  check(rank <= 32 && g.rowRank <= rank, "bad_range", "rank or row_rank"); // R6.1
  check(g.segmentRows >= 1 && g.segmentCols >= 1 && g.tileRows >= 1 && g.tileCols >= 1,
    "bad_range", "a segment or tile without words"); // R6.5
  check(g.segmentRows * g.segmentCols <= 2 ** 24, "bad_range", "words of a segment"); // R6.5
  for (const [tile, segment] of [[g.tileRows, g.segmentRows], [g.tileCols, g.segmentCols]]) {
    check(segment % tile === 0 && (tile >= 16 || tile === segment), "bad_range",
      "tiles do not fit segments"); // R6.7
  }
}

function readTensor(c, index) {
  index.budget.take(1500);
  const offset = c.u64(), payloadNbytes = c.u64(), crc = c.u32(), dtypeId = c.u8(), rank = c.u8();
  const rowRank = c.u8(), elementOrder = c.u8();
  const [segmentRows, segmentCols, tileRows, tileCols] = Array.from({ length: 4 }, () => c.u32());
  const flags = c.u16(), nameNbytes = c.u16(), dtypeNameNbytes = c.u16(), reserved = c.u16();
  checkGeometry({ rowRank, segmentRows, segmentCols, tileRows, tileCols }, rank);
  const difference = flags & 3, sparse = (flags & 4) !== 0;
  check(flags < 8 && reserved === 0 && difference <= 2, "bad_value", "flags of a tensor"); // R4.31
  check(difference === 0 || index.base !== null, "bad_value", "a difference without BASE"); // R4.31
  check(!sparse || difference > 0, "bad_value", "SPARSE without a difference"); // R4.31
  check(dtypeId < DTYPES.length, "unsupported_coder", `dtype ${dtypeId}`); // R4.31
  check(elementOrder === 0, "unsupported_coder", `element_order ${elementOrder}`); // R4.31
  check(!sparse || rowRank === 0 && tileRows === segmentRows && tileCols === segmentCols,
    "bad_value", "geometry of a sparse tensor"); // R12.7
  const dtype = DTYPES[dtypeId], shape = Array.from({ length: rank }, () => c.u64());
  const product = (dims, start) => dims.reduce((a, b) => a * b, start);
  const elementNbytes = BigInt(dtype.wordNbytes * dtype.wordsPerElement);
  check(product(shape.filter((n) => n > 0n), elementNbytes) < 1n << 63n, "bad_range",
    "a tensor of 2^63 bytes or more"); // R4.35
  const rows = product(shape.slice(0, rowRank), 1n); // R6.2
  const cols = product(shape.slice(rowRank), BigInt(dtype.wordsPerElement));
  const name = c.text(nameNbytes), dtypeName = c.text(dtypeNameNbytes);
  check(offset === BigInt(index.payloadEnd), "bad_range", "payload_offset"); // R4.33
  const up = (n, by) => (n + BigInt(by) - 1n) / BigInt(by);
  const gridCols = up(cols, segmentCols), nSegments = up(rows, segmentRows) * gridCols; // R6.4
  check(nSegments * 4n <= BigInt(c.left), "bad_range", "no room for the segment table"); // R4.38
  const nbytes = product(shape, elementNbytes);
  if (nbytes > BigInt(Number.MAX_SAFE_INTEGER)) fail("resource_limit", "a tensor above 2^53 bytes");
  const number = (n) => n <= BigInt(Number.MAX_SAFE_INTEGER) ? Number(n) : n;
  const t = {
    name, dtype, dtypeName, crc32: crc, rowRank, difference, sparse, segmentRows, segmentCols,
    tileRows, tileCols, shape: shape.map(number), nbytes: Number(nbytes), rows: number(rows),
    cols: number(cols), gridCols: number(gridCols), nSegments: Number(nSegments),
    payloadOffset: index.payloadEnd, payloadNbytes: Number(payloadNbytes), table: null, lists: null,
    duplicateOf: null, target: null,
  };
  if (t.nSegments > 0) readTensorTables(c, t, index);
  c.end("TENSOR"); // R4.30
  const due = (t.table?.nbytes ?? 0) + (t.lists?.gaps.nbytes ?? 0);
  check(payloadNbytes === BigInt(due), "bad_range", "payload_nbytes"); // R4.34
  index.payloadEnd += due;
  return t;
}

/** The segment table, or what a sparse tensor has in its place (R12.8). */
function readTensorTables(c, t, index) {
  const word = t.difference === MINUS ? UNSIGNED[t.dtype.wordNbytes] : t.dtype; // R12.5
  if (!t.sparse) {
    t.table = new SegmentTable(c, t.nSegments, (i) => segmentAt(t, i), word, index);
    return;
  }
  index.budget.take(12 * t.nSegments);
  const nListed = c.array(4, t.nSegments), listing = [];
  for (let i = 0; i < t.nSegments; i++) {
    const { rows, cols } = segmentAt(t, i);
    check(nListed[i] <= rows * cols, "bad_range", "n_listed"); // R12.9
    if (nListed[i] > 0) listing.push(i);
  }
  const numberOf = new Map(listing.map((i, k) => [i, k]));
  t.lists = { nListed, listing, numberOf, gaps: { nbytes: 0 } };
  if (listing.length === 0) return;
  index.budget.take(100 * listing.length);
  const nGaps = readColumn(c, listing.length), wordsCrc32 = c.array(4, listing.length);
  listing.forEach((i, k) => {
    const { rows, cols } = segmentAt(t, i), n = nListed[i];
    const most = n + Math.floor((rows * cols - n) / 255);
    check(nGaps.at(k) >= n && nGaps.at(k) <= most, "bad_range", "n_gaps"); // R12.9
  });
  const run = (n) => ({ row: 0, col: 0, rows: 1, cols: n, tileRows: 1, tileCols: n }); // R12.10
  const gaps = new SegmentTable(c, listing.length, (k) => run(nGaps.at(k)), DTYPES[2], index);
  t.table = new SegmentTable(c, listing.length, (k) => run(nListed[listing[k]]), word, index);
  Object.assign(t.lists, { nGaps, wordsCrc32, gaps });
}

/** Segment i of a tensor: where it lies, its size and that of its tiles (R6.4, R6.6). */
function segmentAt(t, i) {
  const row = Math.floor(i / t.gridCols) * t.segmentRows, col = i % t.gridCols * t.segmentCols;
  return {
    row, col, rows: Math.min(t.segmentRows, t.rows - row),
    cols: Math.min(t.segmentCols, t.cols - col), tileRows: t.tileRows, tileCols: t.tileCols,
  };
}

/** A column of R4.37: one value for all segments, or one each. */
function readColumn(c, n) {
  const width = c.u8();
  check(width <= 2 || width === 4, "bad_value", `a column of width ${width}`); // R4.37
  const values = width ? c.array(width, n) : c.array(4, 1), step = width ? 1 : 0;
  return { at: (i) => values[i * step] };
}

/** A segment table (4.5), checked; `shapeOf` gives the sizes of a segment. */
class SegmentTable {
  constructor(c, n, shapeOf, word, index) {
    index.budget.take(8 * n + 4096);
    Object.assign(this, { n, shapeOf, word, index, crc32: c.array(4, n) });
    this.layout = readColumn(c, n);
    this.base = readColumn(c, n);
    this.nPatches = readColumn(c, n);
    this.planes = Array.from({ length: Math.max(word.wordNbytes, 2) }, () => ({ // R5.9
      coder: readColumn(c, n), table: readColumn(c, n),
      prediction: readColumn(c, n), nUnits: readColumn(c, n),
    }));
    this.offsets = new Float64Array(n + 1); // of records, from the first one (R10.1)
    for (let i = 0; i < n; i++) this.offsets[i + 1] = this.offsets[i] + this.check(i);
    this.nbytes = this.offsets[n];
  }

  /** Checks segment i and gives the size of its record. */
  check(i) {
    const { rows, cols } = this.shapeOf(i), n = rows * cols, b = this.word.wordNbytes;
    const layout = this.layout.at(i), base = this.base.at(i), nPatches = this.nPatches.at(i);
    check(layout <= 255 && base <= 255, "bad_value", "layout or base above 255"); // R4.39
    check(layout <= PAIRS, "unsupported_coder", "layout"); // R5.3
    const mayPair = layout !== PAIRS || b === 1 || this.word.exponentBits > 0;
    check(mayPair, "bad_value", "PAIRS of this dtype"); // R5.7
    const hasWindow = layout === PAIRS && b > 1;
    check(base === 0 || hasWindow && base <= 240, "bad_value", "base"); // R5.8
    check(nPatches === 0 || hasWindow && nPatches <= n, "bad_range", "n_patches"); // R10.9
    const nPlanes = this.nPlanes(i);
    let nbytes = layout === RAW ? pad16(n * b) : pad16(4 * nPatches); // R10.6
    let nOwnModes = 0, hasScales = false;
    this.planes.forEach((plane, p) => {
      nbytes += this.checkPlane(plane, i, p, p < nPlanes, this.nSymbols(i, p, n));
      if (plane.prediction.at(i) === OWN_MODES) nOwnModes += 1;
      if (this.kind(plane, i) === SCALE) hasScales = true;
    });
    if (nOwnModes) nbytes += pad16(nOwnModes * this.nTiles(i)); // R10.4
    if (hasScales) nbytes += pad16(Math.ceil((rows + cols) / 4)); // R10.10
    return nbytes;
  }

  checkPlane(plane, i, p, exists, n) {
    const coder = plane.coder.at(i), table = plane.table.at(i);
    const mode = plane.prediction.at(i), nUnits = plane.nUnits.at(i);
    const { tables, maps } = this.index;
    check(coder <= 255 && mode <= 255, "bad_value", "coder or prediction above 255"); // R4.39
    if (!exists) {
      check(!(coder || table || mode || nUnits), "bad_value", "a plane that is not there"); // R5.9
      return 0;
    }
    check(CODERS[coder], "unsupported_coder", "coder of a plane"); // R10.5
    check(mode === OWN_MODES || isMode(mode), "unsupported_coder", "prediction of a plane"); // R7.1
    const isStream = coder === RANS || coder === CONTEXT;
    const mayPredict = isStream && this.layout.at(i) === BYTES;
    check(mode === 0 || mayPredict, "bad_value", "a mode of a plane that is not coded"); // R7.2
    const nValues = isStream ? (coder === RANS ? tables : maps).length : coder === RAW ? 1 : 256;
    check(table < nValues, "bad_range", "table of a plane"); // R10.5
    check(p > 0 || this.kind(plane, i) !== PLANE, "bad_value", "contexts of plane 0"); // R9.13
    const most = isStream ? 8 + 16 * Math.ceil(n / 128) : 0;
    check(nUnits <= most && nUnits >= (isStream ? 8 : 0), "bad_range", "n_units"); // R9.10, R10.6
    if (isStream) return 16 * nUnits;
    return coder === RAW ? pad16(n) : 0; // R10.6
  }

  nPlanes(i) {
    const layout = this.layout.at(i), b = this.word.wordNbytes;
    if (layout === RAW) return 0; // R5.5
    return layout === PAIRS ? Math.max(b, 2) : b; // R5.4, R5.7
  }

  /** Bytes of plane p (R10.3). */
  nSymbols(i, p, n) {
    const isPacked = this.layout.at(i) === PAIRS && (p === 0 || this.word.wordNbytes === 1);
    return isPacked ? Math.ceil(n / 2) : n;
  }

  nTiles(i) {
    const s = this.shapeOf(i);
    return Math.ceil(s.rows / s.tileRows) * Math.ceil(s.cols / s.tileCols);
  }

  /** The kind of a plane's context map, or 0. */
  kind(plane, i) {
    return plane.coder.at(i) === CONTEXT ? this.index.maps[plane.table.at(i)].kind : 0;
  }

  /** @returns {RecordInfo} */
  info(i) {
    const { rows, cols } = this.shapeOf(i), planes = this.planes.slice(0, this.nPlanes(i));
    return {
      layout: LAYOUTS[this.layout.at(i)], base: this.base.at(i), nPatches: this.nPatches.at(i),
      nbytes: this.offsets[i + 1] - this.offsets[i], crc32: this.crc32[i],
      planes: planes.map((plane, p) => {
        const coder = plane.coder.at(i), table = plane.table.at(i);
        const raw = coder === RAW ? pad16(this.nSymbols(i, p, rows * cols)) : 0;
        return {
          coder: CODERS[coder], mode: modeName(plane.prediction.at(i)),
          table: coder === RANS ? table : null, contextMap: coder === CONTEXT ? table : null,
          constant: coder === CONSTANT ? table : null, nbytes: raw + 16 * plane.nUnits.at(i),
        };
      }),
    };
  }
}

// ---- chapter 9: entropy coding ------------------------------------------------------------------
/** For each slot, from the lowest bit: symbol 8, slot - c[s] 12, f[s] 12 (R9.1). */
function fillLookup(lookup, start, { frequencies }) {
  let slot = start;
  for (let s = 0; s < 256; s++) {
    const f = frequencies[s];
    for (let k = 0; k < f; k++) lookup[slot++] = f << 20 | k << 8 | s;
  }
}

/** The lookup of a table, or those of a map's tables one behind another. */
function lookupOf(owner, index) {
  if (owner.lookup === null) {
    const tables = owner.tables ?? [owner], size = 1 << owner.probBits;
    const recent = index.lookups ??= [];
    if (recent.length >= 256) recent.shift().lookup = null; // at most 64 MiB are kept
    recent.push(owner);
    owner.lookup = new Int32Array(size * tables.length);
    tables.forEach((t, k) => fillLookup(owner.lookup, k * size, t));
  }
  return owner.lookup;
}

function checkStream(states, pos, nWords) {
  check(pos <= nWords, "bad_stream", "a stream needs more words than it has"); // R9.11
  check(states.every((x) => x === 65536) && nWords - pos <= 7, "bad_stream",
    "a stream does not end as it must"); // R9.11
}

/** Decodes a stream of n symbols (R9.2 to R9.11), each under the table of its class (R9.12). */
function decodeStream(stream, n, lookup, probBits, classes) {
  const x = new Int32Array(stream.slice(0, 128).buffer);
  const words = new Uint16Array(stream.slice(128).buffer), nWords = words.length;
  const out = new Uint8Array(Math.ceil(n / 128) * 128), mask = (1 << probBits) - 1;
  let pos = 0;
  for (let at = 0; at < out.length && pos <= nWords; at += 128) {
    for (let step = at; step < at + 4; step++) {
      for (let l = 0; l < 32; l++) {
        const state = x[l], i = step + 4 * l;
        const entry = lookup[classes[i] << probBits | state & mask];
        out[i] = entry;
        let next = Math.imul(entry >>> 20, state >>> probBits) + (entry >>> 8 & 4095) | 0;
        if (next >>> 16 === 0) next = next << 16 | words[pos++];
        x[l] = next;
      }
    }
  }
  checkStream(x, pos, nWords);
  return out.subarray(0, n);
}

// ---- chapters 7 and 8: prediction and transform -------------------------------------------------
const LIFTS = [null, { // R8.3: rows a b p u r
  order: [0, 6, 3, 7, 1, 4, 2, 5],
  rows: [
    [7, 0, -128, 64, 0], [6, 1, -128, 64, 0], [5, 2, -128, 64, 0], [4, 3, -128, 64, 0],
    [3, 0, -128, 64, 0], [2, 1, -128, 64, 0], [1, 0, -128, 64, 0], [3, 2, 25, -49, 25],
    [7, 4, 13, -25, 13], [6, 5, 39, -71, 39], [7, 6, -53, 91, -53], [5, 4, -53, 91, -53],
    [7, 4, -53, 91, -53],
  ],
}, {
  order: [6, 4, 2, 1, 7, 3, 5, 0],
  rows: [
    [0, 7, -6, 13, -6], [1, 6, -19, 37, -19], [2, 5, -32, 60, -32], [3, 4, -46, 81, -46],
    [0, 3, -53, 91, -53], [1, 2, -53, 91, -53], [0, 1, -53, 91, -53], [3, 2, -25, 49, -25],
    [7, 4, 53, -91, 53], [6, 5, 53, -91, 53], [7, 6, -53, 91, -53], [4, 5, 25, -49, 25],
    [2, 4, -53, 91, -53], [1, 7, -53, 91, -53], [3, 5, -53, 91, -53],
  ],
}].map((t) => t && { // target, source and factor of each step, from the last to the first
  order: t.order,
  steps: Int32Array.from(t.rows.reverse().flatMap(([a, b, p, u, r]) =>
    [a, b, r, b, a, u, a, b, p])),
});

/** Undoes the transform of eight values that stand `stride` apart (R8.4). */
function undoGroup(v, at, stride, { order, steps }, y) {
  for (let k = 0; k < 8; k++) y[order[k]] = v[at + k * stride];
  for (let i = 0; i < steps.length; i += 3) {
    y[steps[i]] -= steps[i + 2] * y[steps[i + 1]] + 64 >> 7;
  }
  for (let k = 0; k < 8; k++) v[at + k * stride] = y[k];
}

/** Turns the stream's bytes of a tile, h rows of w, into those of its plane (R7.3, R8.4). */
function undoMode(v, h, w, mode) {
  const lifts = LIFTS[mode >> 4], prediction = mode & 15;
  if (lifts) {
    const y = new Int8Array(8); // R8.1, and signed() of R8.3
    for (let r = 0; r + 8 <= h; r += 8) {
      for (let c = 0; c < w; c++) undoGroup(v, r * w + c, w, lifts, y);
    }
    for (let r = 0; r < h; r++) {
      for (let c = 0; c + 8 <= w; c += 8) undoGroup(v, r * w + c, 1, lifts, y);
    }
  }
  if (prediction === 0) {
    if (lifts) for (let i = 0; i < v.length; i++) v[i] += 128; // R7.4
    return;
  }
  for (let c = 1; c < w; c++) v[c] += v[c - 1]; // R7.5
  for (let r = 1; r < h; r++) {
    const start = r * w, end = start + w;
    v[start] += v[start - w]; // R7.5
    let i = start + 1; // R7.6
    if (prediction === 1) for (; i < end; i++) v[i] += v[i - 1];
    else if (prediction === 2) for (; i < end; i++) v[i] += v[i - w];
    else if (prediction === 3) for (; i < end; i++) v[i] += v[i - 1] + v[i - w] >> 1;
    else for (; i < end; i++) v[i] += v[i - 1] + v[i - w] - v[i - w - 1];
  }
}

// ---- chapters 5, 6 and 10: segments -------------------------------------------------------------
/** The tiles of a segment in their order, and the element that each starts with (R6.8, R6.9). */
function* tilesOf(s) {
  let start = 0;
  for (let row = 0; row < s.rows; row += s.tileRows) {
    for (let col = 0; col < s.cols; col += s.tileCols) {
      const rows = Math.min(s.tileRows, s.rows - row), cols = Math.min(s.tileCols, s.cols - col);
      yield { row, col, rows, cols, start };
      start += rows * cols;
    }
  }
}

/** Sets the class of each symbol of a plane under POSITION or SCALE (R9.13). */
function placeClasses(classes, { kind, classOf }, s, elementsPerSymbol, scales) {
  for (const t of tilesOf(s)) {
    let i = t.start;
    for (let r = 0; r < t.rows; r++) {
      for (let c = 0; c < t.cols; c++, i++) {
        if (elementsPerSymbol === 2 && i & 1) continue; // R9.14
        const context = kind === POSITION ? 8 * (r & 7) + (c & 7)
          : 4 * scales[t.row + r] + scales[s.rows + t.col + c];
        classes[i / elementsPerSymbol] = classOf[context];
      }
    }
  }
}

/** Decodes a record that has its CRC-32: the words of the segment in raster order, as bytes. */
class SegmentDecoder {
  constructor(table, i, record) {
    check(crc32(record) === table.crc32[i], "bad_checksum", `CRC-32 of segment ${i}`); // R11.2
    Object.assign(this, { table, i, record, at: 0, s: table.shapeOf(i) });
    this.n = this.s.rows * this.s.cols;
    this.planes = table.planes.slice(0, table.nPlanes(i));
  }

  part(nbytes) {
    const part = this.record.subarray(this.at, this.at + nbytes);
    this.at += pad16(nbytes); // R10.2
    return part;
  }

  decode() {
    const { table, i, n } = this, b = table.word.wordNbytes, layout = table.layout.at(i);
    if (layout === RAW) return this.part(n * b); // R5.5, R10.7
    const own = this.planes.filter((p) => p.prediction.at(i) === OWN_MODES);
    const nTiles = table.nTiles(i);
    const modes = this.part(own.length * nTiles); // R10.4
    check(modes.every(isMode), "unsupported_coder", "a byte of the tile modes is no mode"); // R10.4
    if (this.planes.some((p) => table.kind(p, i) === SCALE)) this.scales = this.readScales();
    const hasWindow = layout === PAIRS && b > 1, planes = [];
    this.planes.forEach((plane, p) => {
      const k = own.indexOf(plane);
      let v = this.decodePlane(plane, p, planes[0]);
      this.undoModes(v, plane.prediction.at(i), k < 0 ? null : modes.subarray(k * nTiles));
      if (p === 0 && hasWindow) v = unpack(v, n);
      planes.push(v);
    });
    if (layout === PAIRS && b === 1) {
      const low = unpack(planes.pop(), n);
      planes[0] = unpack(planes[0], n).map((high, k) => high << 4 | low[k]); // R5.7
    }
    const window = table.base.at(i);
    this.patch(planes[0], table.nPatches.at(i), window);
    return this.toRaster(joinPlanes(planes, n, window, table.word), b);
  }

  readScales() {
    const n = this.s.rows + this.s.cols, bytes = this.part(Math.ceil(n / 4)); // R10.10
    return Uint8Array.from({ length: n }, (_, k) => bytes[k >> 2] >> 2 * (k & 3) & 3);
  }

  decodePlane(plane, p, plane0) {
    const { table, i } = this, number = plane.table.at(i), n = table.nSymbols(i, p, this.n);
    const { tables, maps } = table.index, coder = plane.coder.at(i);
    if (coder === RAW) return this.part(n);
    if (coder === CONSTANT) return new Uint8Array(n).fill(number);
    const stream = this.part(16 * plane.nUnits.at(i));
    const owner = coder === RANS ? tables[number] : maps[number];
    const classes = new Uint8Array(Math.ceil(n / 128) * 128); // class 0 for filling
    if (owner.kind === PLANE) {
      for (let k = 0; k < n; k++) classes[k] = owner.classOf[plane0[k]]; // R9.13
    } else if (coder === CONTEXT) {
      placeClasses(classes, owner, this.s, n < this.n ? 2 : 1, this.scales);
    }
    return decodeStream(stream, n, lookupOf(owner, table.index), owner.probBits, classes);
  }

  undoModes(v, mode, modes) {
    if (mode === 0) return;
    let k = 0;
    for (const { start, rows, cols } of tilesOf(this.s)) {
      undoMode(v.subarray(start, start + rows * cols), rows, cols, modes ? modes[k++] : mode);
    }
  }

  /** Patches (R10.8): highest bytes, to which the base of the window is still to be added. */
  patch(top, nPatches, window) {
    const patches = this.part(4 * nPatches);
    let last = -1;
    for (let k = 0; k < patches.length; k += 4) {
      const index = patches[k] | patches[k + 1] << 8 | patches[k + 2] << 16;
      check(index > last && index < this.n, "bad_patch", "index of a patch"); // R10.8
      top[index] = patches[k + 3] - window;
      last = index;
    }
  }

  toRaster(words, b) {
    const { rows, cols, tileCols } = this.s;
    if (tileCols >= cols) return words; // tiles lie one below another
    const out = new Uint8Array(words.length);
    for (const t of tilesOf(this.s)) {
      for (let r = 0; r < t.rows; r++) {
        const from = (t.start + r * t.cols) * b;
        out.set(words.subarray(from, from + t.cols * b), ((t.row + r) * cols + t.col) * b);
      }
    }
    return out;
  }
}

/** 4-bit values, two to a byte, the lower half first (R5.6). */
function unpack(packed, n) {
  const out = new Uint16Array(packed.length);
  for (let i = 0; i < packed.length; i++) out[i] = packed[i] & 15 | packed[i] >> 4 << 8;
  return new Uint8Array(out.buffer, 0, n);
}

/** Words from the planes of mapped words (R5.2, R5.4), `window` added to their highest bytes. */
function joinPlanes(planes, n, window, { wordNbytes: b, offset, exponentBits: e }) {
  const out = new Uint8Array(n * b), [p, q, r, s] = planes, f = 8 * b - 1 - e;
  const sign = e && 1 << f, exponent = e && (1 << e) - 1 << f; // their places in m and in w
  const rest = e ? (1 << f) - 1 : -1, flip = offset ? 1 << 8 * b - 1 : 0;
  if (b === 1) {
    for (let i = 0; i < n; i++) {
      const m = p[i];
      out[i] = ((m & sign) << e | m >>> 1 & exponent | m & rest) ^ flip;
    }
  } else if (b === 2) {
    const words = new Uint16Array(out.buffer);
    for (let i = 0; i < n; i++) {
      const m = (p[i] + window & 255) << 8 | q[i];
      words[i] = ((m & sign) << e | m >>> 1 & exponent | m & rest) ^ flip;
    }
  } else if (b === 4) {
    const words = new Uint32Array(out.buffer);
    for (let i = 0; i < n; i++) {
      const m = p[i] + window << 24 | q[i] << 16 | r[i] << 8 | s[i];
      words[i] = ((m & sign) << e | m >>> 1 & exponent | m & rest) ^ flip;
    }
  } else { // IDENTITY and OFFSET
    planes.forEach((plane, k) => {
      const high = k === 0 && offset ? 128 : 0;
      for (let i = 0, at = b - 1 - k; i < n; i++, at += b) out[at] = plane[i] ^ high;
    });
  }
  return out;
}

// ---- chapter 12: differences and lists ----------------------------------------------------------
/** Turns differences into words, in place, given those of the base (R12.5). */
function undoDifference(bytes, base, kind, b) {
  if (kind === XOR) {
    for (let i = 0; i < bytes.length; i++) bytes[i] ^= base[i];
    return;
  }
  for (let at = 0; at < bytes.length; at += b) {
    const flip = bytes[at] & 1 ? 255 : 0;
    let carry = 0;
    for (let k = at; k < at + b; k++) { // d is z >> 1, inverted if z is odd
      const above = k + 1 < at + b ? bytes[k + 1] << 7 : 0;
      carry += ((bytes[k] >> 1 | above & 128) ^ flip) + base[k];
      bytes[k] = carry;
      carry >>= 8;
    }
  }
}

/** Numbers of the listed words in their segment of n words (R12.11). */
function positionsOf(gaps, nListed, n) {
  const positions = new Uint32Array(nListed);
  let at = 0, k = 0;
  for (const gap of gaps) {
    at += gap;
    if (gap === 255) continue;
    check(k < nListed && at < n, "bad_patch", "gaps do not fit their segment"); // R12.11
    positions[k++] = at++;
  }
  check(k === nListed && gaps.at(-1) !== 255, "bad_patch", "gaps do not end right"); // R12.11
  return positions;
}

// ---- sources ------------------------------------------------------------------------------------
const SMALL_FILE_NBYTES = 2 ** 24; // what is taken whole from a server without ranges

function fromBytes(bytes) {
  return { size: bytes.length, read: async (offset, n) => bytes.subarray(offset, offset + n) };
}

function fromBlob(blob) {
  const read = async (offset, n) => {
    try {
      return new Uint8Array(await blob.slice(offset, offset + n).arrayBuffer());
    } catch (e) { // what browsers say of a file that was written to
      if (e.name !== "NotReadableError") throw e;
      return fail("changed", "the file was changed while it was read");
    }
  };
  return { size: blob.size, read };
}

/** A URL, read by ranges; a small file of a server that gives none is taken whole. */
async function fromUrl(url, { fetch: get = fetch, headers = {} }) {
  const versionOf = (r) => `${r.headers.get("ETag")} ${r.headers.get("Last-Modified")}`;
  const part = async (range) => {
    const r = await get(url, { headers: { ...headers, Range: `bytes=${range}` } });
    if (r.status >= 400 && r.status !== 412 && r.status !== 416) {
      await r.body?.cancel();
      throw new Error(`${url}: HTTP ${r.status}`);
    }
    return r;
  };
  const first = await part("0-0"), version = versionOf(first);
  const stated = /^bytes 0-0\/(\d+)$/.exec(first.headers.get("Content-Range") ?? "");
  if (first.status !== 206 || !stated) {
    const length = Number(first.headers.get("Content-Length") ?? Infinity);
    if (first.status === 200 && length <= SMALL_FILE_NBYTES) {
      return fromBytes(new Uint8Array(await first.arrayBuffer()));
    }
    await first.body?.cancel();
    if (first.status === 416) return fromBytes(new Uint8Array(0)); // an empty file
    throw new Error(`${url}: the server gives no ranges`);
  }
  await first.arrayBuffer();
  const size = Number(stated[1]);
  const read = async (offset, n) => {
    if (n === 0) return new Uint8Array(0);
    const range = `${offset}-${offset + n - 1}`, r = await part(range);
    const isSame = r.status === 206 && versionOf(r) === version
      && r.headers.get("Content-Range") === `bytes ${range}/${size}`;
    if (isSame) return new Uint8Array(await r.arrayBuffer());
    await r.body?.cancel();
    return fail("changed", "the server has another file now");
  };
  return { size, read };
}

async function toSource(source, options) {
  if (source instanceof ArrayBuffer) return fromBytes(new Uint8Array(source));
  if (source instanceof Uint8Array) return fromBytes(source);
  if (typeof Blob !== "undefined" && source instanceof Blob) return fromBlob(source);
  if (typeof source === "string" || source instanceof URL) return fromUrl(source, options);
  if (typeof source?.read === "function" && Number.isSafeInteger(source.size)) return source;
  throw new TypeError("a source is bytes, a Blob, a URL, or has size and read");
}

// ---- files --------------------------------------------------------------------------------------
const READ_NBYTES = 2 ** 23; // records that lie together are read together up to here
const DEFAULT_LIMIT = 2 ** 32;

/**
 * Opens a file and checks all but its payloads.
 * @param {Source} source
 * @param {Options} [options]
 * @returns {Promise<WcodecFile>}
 */
export async function open(source, options = {}) {
  const from = await toSource(source, options), { memoryLimit = DEFAULT_LIMIT, base } = options;
  const read = async (offset, n) => {
    const bytes = await from.read(offset, n);
    check(bytes.length === n, "truncated", "the file was cut while it was read");
    return new Uint8Array(bytes.buffer, bytes.byteOffset, n); // a Buffer has another slice()
  };
  checkHeader(await read(0, Math.min(from.size, HEADER_NBYTES)), from.size);
  const footer = readFooter(await read(from.size - FOOTER_NBYTES, FOOTER_NBYTES), from.size);
  const budget = new Budget(memoryLimit);
  budget.take(footer.indexNbytes + 3 * footer.rawNbytes); // chapter 16
  const stored = await read(footer.indexOffset, footer.indexNbytes);
  check(crc32(stored) === footer.indexCrc32, "bad_checksum", "CRC-32 of the index"); // R4.13
  const raw = footer.coding ? await inflate(stored, footer.rawNbytes) : stored;
  const index = new Index(raw, footer, budget);
  return new WcodecFile(read, from.size, footer, index, { memoryLimit, base });
}

function checkTensor(t, crc) {
  if (crc !== t.crc32) throw new WcodecError("bad_checksum", "CRC-32 of a tensor", t.name); // R11.3
}

/** @returns {TensorInfo} */
function infoOf(t) {
  const { nbytes } = t, stored = t.target ? 0 : t.payloadNbytes;
  const nWeights = nbytes / (t.dtype.wordNbytes * t.dtype.wordsPerElement);
  const { name, dtypeName, crc32, rowRank, segmentRows, segmentCols, tileRows, tileCols } = t;
  return Object.freeze({
    name, dtype: t.dtype.name, dtypeId: t.dtype.id, dtypeName,
    safetensorsDtype: t.dtype.safetensors, shape: Object.freeze([...t.shape]),
    nWords: nbytes / t.dtype.wordNbytes, wordNbytes: t.dtype.wordNbytes, nbytes,
    payloadOffset: t.payloadOffset, payloadNbytes: stored,
    bitsPerWeight: nWeights ? 8 * stored / nWeights : 0, crc32, rows: t.rows, cols: t.cols, rowRank,
    segmentRows, segmentCols, tileRows, tileCols, nSegments: t.nSegments,
    difference: DIFFERENCES[t.difference], sparse: t.sparse, duplicateOf: t.duplicateOf,
  });
}

/** An open file; made by `open`. All that its properties hold is to be read only. */
export class WcodecFile {
  #read;
  #index;
  #byName;
  #limit;
  #base;
  #contentHash = null;

  constructor(read, nbytes, footer, index, { memoryLimit, base }) {
    this.#read = read;
    this.#index = index;
    this.#limit = memoryLimit;
    this.#base = base;
    this.#byName = new Map(index.tensors.map((t) => [t.name, t]));
    /** Bytes of the file, of the index as stored, and of its records. */
    this.nbytes = nbytes;
    this.indexNbytes = footer.indexNbytes;
    this.indexRawNbytes = footer.rawNbytes;
    /** Bytes of all decoded tensors. @type {number | bigint} */
    this.dataNbytes = footer.dataNbytes <= BigInt(Number.MAX_SAFE_INTEGER)
      ? Number(footer.dataNbytes) : footer.dataNbytes;
    this.version = "0.2";
    /** @type {readonly TensorInfo[]} In the order of the file. */
    this.tensors = Object.freeze(index.tensors.map(infoOf));
    /** @type {ReadonlyMap<string, string>} */
    this.metadata = index.metadata;
    /** "safetensors", or null without a SOURCE record; and what the restored file starts with. */
    this.source = index.sourceKind === null ? null : "safetensors";
    this.sourceHeader = index.sourceHeader;
    /** @type {{contentHash: string, name: string} | null} What differences refer to. */
    this.base = index.base;
    /** Frequency tables and context maps, by their numbers. */
    this.tables = Object.freeze(index.tables.map(({ probBits, frequencies }) =>
      Object.freeze({ probBits, frequencies })));
    this.contextMaps = Object.freeze(index.maps.map(({ kind, classOf, numbers }) =>
      Object.freeze({ kind: KINDS[kind], classOf, tables: numbers })));
    /** Types and sizes of records that this version does not know. */
    this.unknownRecords = Object.freeze(index.unknownRecords);
    Object.freeze(this);
  }

  /** The content hash of R11.4, in hexadecimal. */
  get contentHash() {
    return this.#contentHash ??= contentHash(this.#index.tensors);
  }

  /**
   * How each segment of a tensor is stored, in the order of the file.
   * @param {string} name
   * @returns {Generator<SegmentInfo>}
   */
  * segments(name) {
    const t = this.#find(name);
    for (let i = 0; i < t.nSegments; i++) {
      const { row, col, rows, cols } = segmentAt(t, i);
      const k = t.sparse ? t.lists.numberOf.get(i) : i;
      const record = k === undefined ? null : t.table.info(k);
      const gaps = t.sparse && record ? t.lists.gaps.info(k) : null;
      const nListed = t.sparse ? t.lists.nListed[i] : null;
      const nbytes = (record?.nbytes ?? 0) + (gaps?.nbytes ?? 0);
      yield { row, col, rows, cols, nbytes, nListed, record, gaps };
    }
  }

  /**
   * Decodes a tensor and checks its CRC-32.
   * @param {string} name
   * @param {BaseOption} [options]
   * @returns {Promise<Decoded>}
   */
  async tensor(name, options = {}) {
    const t = this.#find(name);
    return this.#guard(t, async () => {
      const bytes = await this.#words(t, 0, t.nbytes / t.dtype.wordNbytes, options.base);
      checkTensor(t, crc32(bytes));
      return decoded(t, t.shape, bytes);
    });
  }

  /**
   * Decodes rows `begin` to `end` of the first dimension, from the segments that hold them (R12.3).
   * @param {string} name
   * @param {number} begin
   * @param {number} end
   * @param {BaseOption} [options]
   * @returns {Promise<Decoded>}
   */
  async rows(name, begin, end, options = {}) {
    const t = this.#find(name), [n] = t.shape;
    const isRange = Number.isSafeInteger(begin) && Number.isSafeInteger(end)
      && 0 <= begin && begin <= end && t.shape.length > 0 && end <= n;
    if (!isRange) throw new RangeError(`${name} has no rows ${begin} to ${end}`);
    return this.#guard(t, async () => {
      const nWords = n > 0 ? t.nbytes / t.dtype.wordNbytes / Number(n) : 0;
      const bytes = await this.#words(t, begin * nWords, end * nWords, options.base);
      return decoded(t, [end - begin, ...t.shape.slice(1)], bytes);
    });
  }

  /**
   * Decodes all tensors and checks all CRC-32s.
   * @param {(doneNbytes: number, allNbytes: number | bigint) => void} [onProgress]
   *   Decoded bytes so far, and in all.
   * @param {BaseOption} [options]
   */
  async verify(onProgress = () => {}, options = {}) {
    let done = 0;
    for await (const chunk of this.#chunks(options.base)) {
      done += chunk.length;
      onProgress(done, this.dataNbytes);
    }
  }

  /**
   * Gives the restored file piece by piece (R4.22). Whoever takes the pieces throws them away if
   * this fails: only then is it known that they are not all.
   * @param {(bytes: Uint8Array) => void | Promise<void>} write
   * @param {BaseOption} [options]
   */
  async restore(write, options = {}) {
    await write(this.sourceHeader);
    for await (const chunk of this.#chunks(options.base)) await write(chunk);
  }

  #find(name) {
    const t = this.#byName.get(name);
    if (t === undefined) throw new RangeError(`no tensor ${JSON.stringify(name)}`);
    return t;
  }

  /** Adds a tensor's name to what is wrong with it. */
  async #guard(t, work) {
    try {
      return await work();
    } catch (e) {
      if (e instanceof WcodecError && e.tensor === undefined) e.tensor = t.name;
      throw e;
    }
  }

  /** The bytes of all tensors, some MiB at a time and never less than a row of segments. */
  async* #chunks(base) {
    for (const t of this.#index.tensors) {
      const b = t.dtype.wordNbytes, nWords = t.nbytes / b;
      const unit = t.rows === 1 ? t.segmentCols : t.segmentRows * Math.max(1, Number(t.cols));
      const step = unit * Math.max(1, Math.floor(READ_NBYTES / (unit * b)));
      let from = 0, crc = 0;
      do { // once for a tensor without words too: it may need a base
        const to = Math.min(from + step, nWords);
        const chunk = await this.#guard(t, () => this.#words(t, from, to, base));
        crc = crc32(chunk, crc);
        if (to === nWords) checkTensor(t, crc);
        yield chunk;
        from = to;
      } while (from < nWords);
    }
  }

  /** Words `from` to `to` of a tensor, as bytes. */
  async #words(t, from, to, base) {
    const b = t.dtype.wordNbytes, segment = Math.min(t.segmentRows * t.segmentCols * b, t.nbytes);
    const old = t.difference ? this.#baseOf(t, base ?? this.#base) : null;
    if (from >= to) return new Uint8Array(0);
    if (t.sparse) return this.#sparseWords(t, from, to, old);
    const row0 = Math.floor(from / t.cols), row1 = Math.ceil(to / t.cols);
    const isOne = row1 - row0 === 1;
    const col0 = isOne ? from - row0 * t.cols : 0, col1 = isOne ? to - row0 * t.cols : t.cols;
    const width = col1 - col0, start = row0 * t.cols + col0, nbytes = (row1 - row0) * width * b;
    new Budget(this.#limit).take(nbytes + 6 * segment + READ_NBYTES);
    const out = allocate(nbytes), wanted = [];
    for (let r = Math.floor(row0 / t.segmentRows); r * t.segmentRows < row1; r++) {
      for (let c = Math.floor(col0 / t.segmentCols); c * t.segmentCols < col1; c++) {
        wanted.push(r * t.gridCols + c);
      }
    }
    for await (const [i, record] of this.#records(t.table, wanted, t.payloadOffset)) {
      const words = new SegmentDecoder(t.table, i, record).decode(), s = segmentAt(t, i);
      const left = Math.max(s.col, col0), n = (Math.min(s.col + s.cols, col1) - left) * b;
      for (let r = Math.max(s.row, row0); r < Math.min(s.row + s.rows, row1); r++) {
        const at = ((r - s.row) * s.cols + left - s.col) * b;
        out.set(words.subarray(at, at + n), ((r - row0) * width + left - col0) * b);
      }
    }
    const bytes = out.subarray((from - start) * b, (to - start) * b);
    if (old) undoDifference(bytes, await old.words(from, to), t.difference, b);
    return bytes;
  }

  /** The same of a sparse tensor: the base's words, and those that its segments list (12.1). */
  async #sparseWords(t, from, to, old) {
    const b = t.dtype.wordNbytes, { lists, table } = t, wanted = [];
    const segment = Math.min(t.segmentCols * b, t.nbytes);
    const first = Math.floor(from / t.segmentCols), last = Math.ceil(to / t.segmentCols);
    for (let i = first; i < last; i++) if (lists.nListed[i]) wanted.push(lists.numberOf.get(i));
    const start = first * t.segmentCols, end = Math.min(last * t.segmentCols, t.cols);
    new Budget(this.#limit).take((end - start) * b + 8 * segment + 2 * READ_NBYTES);
    const out = await old.words(start, end);
    const gapsAt = this.#records(lists.gaps, wanted, t.payloadOffset);
    const wordsAt = this.#records(table, wanted, t.payloadOffset + lists.gaps.nbytes); // R12.8
    for await (const [k, record] of gapsAt) {
      const i = lists.listing[k], s = segmentAt(t, i), nListed = lists.nListed[i];
      const gaps = new SegmentDecoder(lists.gaps, k, record).decode();
      const positions = positionsOf(gaps, nListed, s.cols);
      const [, listed] = (await wordsAt.next()).value;
      const words = new SegmentDecoder(table, k, listed).decode().slice();
      const before = new Uint8Array(words.length), gone = s.col - start;
      const at = (j) => (gone + positions[Math.floor(j / b)]) * b + j % b;
      for (let j = 0; j < words.length; j++) before[j] = out[at(j)];
      undoDifference(words, before, t.difference, b);
      check(crc32(words) === lists.wordsCrc32[k], "bad_checksum", "listed words"); // R12.13
      for (let j = 0; j < words.length; j++) out[at(j)] = words[j];
    }
    return out.subarray((from - start) * b, (to - start) * b);
  }

  /** What reads the words of a tensor's base, after the checks of R12.6. */
  #baseOf(t, base) {
    const isBase = base instanceof WcodecFile && base.contentHash === this.base.contentHash;
    check(isBase, "bad_base", base ? "another checkpoint is given" : "no base is given"); // R12.6
    const { name, shape, dtype } = t.target ?? t; // R12.4
    const old = base.#byName.get(name);
    check(old && old.dtype === dtype && old.shape.join() === shape.join(), "bad_base",
      "the base has no such tensor"); // R12.6
    return { words: (from, to) => base.#words(old, from, to, undefined) };
  }

  /** Numbers and records of segments, read together where they lie together. */
  async* #records(table, wanted, payloadOffset) {
    const { offsets } = table;
    for (let k = 0; k < wanted.length;) {
      const first = wanted[k], start = offsets[first];
      let n = 1;
      while (wanted[k + n] === first + n && offsets[first + n + 1] - start <= READ_NBYTES) n++;
      const bytes = await this.#read(payloadOffset + start, offsets[first + n] - start);
      for (let i = first; i < first + n; i++) {
        yield [i, bytes.subarray(offsets[i] - start, offsets[i + 1] - start)];
      }
      k += n;
    }
  }
}

/** @returns {Decoded} */
function decoded(t, shape, bytes) {
  const View = globalThis[t.dtype.array];
  const aligned = bytes.byteOffset % 8 ? bytes.slice() : bytes;
  const values = View
    ? new View(aligned.buffer, aligned.byteOffset, aligned.length / View.BYTES_PER_ELEMENT) : null;
  return { name: t.name, dtype: t.dtype.name, shape: [...shape], bytes: aligned, values };
}
