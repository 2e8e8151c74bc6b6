#!/usr/bin/env node
// decode.mjs INPUT OUTPUT [BASE]: restores the file that INPUT was made of (spec, chapter 17).
// The exit status is 0, or 1 with `code: why` on stderr and no output.
import { unlinkSync } from "node:fs";
import { open as openFile, rename, stat, statfs, unlink } from "node:fs/promises";
import { dirname } from "node:path";
import { open, WcodecError } from "./wcodec.js";

const handles = [];

/** A file as a source: the part of it that is asked for, or what there is of that. */
async function sourceOf(path) {
  const handle = await openFile(path);
  handles.push(handle);
  const { size } = await handle.stat();
  const read = async (offset, nbytes) => {
    const bytes = new Uint8Array(nbytes);
    let n = 0;
    while (n < nbytes) {
      const { bytesRead } = await handle.read(bytes, n, nbytes - n, offset + n);
      if (bytesRead === 0) break;
      n += bytesRead;
    }
    return bytes.subarray(0, n);
  };
  return { size, read };
}

/** Writes the output under another name first, which no error or signal leaves behind. */
async function decode(input, output, basePath) {
  const base = basePath ? await open(await sourceOf(basePath)) : undefined;
  const file = await open(await sourceOf(input), { base });
  const { bavail, bsize } = await statfs(dirname(output));
  if (BigInt(file.sourceHeader.length) + BigInt(file.dataNbytes) > BigInt(bavail) * BigInt(bsize)) {
    throw new WcodecError("resource_limit", `no room for ${file.dataNbytes} bytes`);
  }
  const there = await stat(output).catch(() => null);
  for (const handle of handles) {
    const { dev, ino } = await handle.stat();
    if (there?.dev === dev && there.ino === ino) throw new Error(`${output} is an input`);
  }
  const part = `${output}.${process.pid}.part`;
  const out = await openFile(part, "wx");
  const stop = () => {
    unlinkSync(part);
    process.exit(130);
  };
  process.once("SIGINT", stop).once("SIGTERM", stop);
  try {
    await file.restore((bytes) => out.writeFile(bytes));
    await out.sync();
    await out.close();
    await rename(part, output);
  } catch (e) {
    await out.close();
    await unlink(part);
    throw e;
  }
}

const [input, output, base] = process.argv.slice(2);
if (!input || !output) {
  console.error("usage: decode.mjs INPUT OUTPUT [BASE]");
  process.exit(2);
}
try {
  await decode(input, output, base);
} catch (e) {
  console.error(e instanceof WcodecError ? `${e.code}: ${e.message}` : e.message);
  process.exitCode = 1;
}
await Promise.all(handles.map((h) => h.close()));
