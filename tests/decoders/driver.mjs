// Decodes many files in one process. Lines of stdin: JSON of {files, most}: a file in base64, its
// base, the base of that and so on; and the most bytes that tensors may have. Lines of stdout:
// {code, sha256}, the latter of the restored file where code is empty.
import { createHash } from "node:crypto";
import { createInterface } from "node:readline";
import { open, WcodecError } from "../../decoders/js/wcodec.js";

const bytesOf = (text) => new Uint8Array(Buffer.from(text, "base64"));

async function outcome({ files, most }) {
  const hash = createHash("sha256");
  try {
    let base, file;
    for (const text of files.reverse()) {
      base = file;
      file = await open(bytesOf(text), { base });
    }
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
