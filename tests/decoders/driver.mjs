// Decodes many files in one process. Lines of stdin: JSON of {input, base, most}: two files in
// base64, and the most bytes that tensors may have. Lines of stdout: {code, sha256}, of the restored
// file where code is empty.
import { createHash } from "node:crypto";
import { createInterface } from "node:readline";
import { open, WcodecError } from "../../decoders/js/wcodec.js";

const bytesOf = (text) => new Uint8Array(Buffer.from(text, "base64"));

async function outcome({ input, base, most }) {
  const hash = createHash("sha256");
  try {
    const file = await open(bytesOf(input), { base: base && await open(bytesOf(base)) });
    if (file.dataNbytes > most) return { code: "resource_limit", message: "" };
    await file.restore((bytes) => { hash.update(bytes); });
    return { code: "", sha256: hash.digest("hex") };
  } catch (e) {
    return { code: e instanceof WcodecError ? e.code : "crash", message: e.stack };
  }
}

for await (const line of createInterface({ input: process.stdin })) {
  process.stdout.write(`${JSON.stringify(await outcome(JSON.parse(line)))}\n`);
}
