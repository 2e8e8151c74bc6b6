// Decodes many files in one process. Lines of stdin: JSON of {input, base}, paths; lines of stdout:
// {code, nbytes, sha256}, of the restored file where code is empty.
import { createHash } from "node:crypto";
import { readFile } from "node:fs/promises";
import { createInterface } from "node:readline";
import { open, WcodecError } from "../../decoders/js/wcodec.js";

async function outcome({ input, base }) {
  const hash = createHash("sha256");
  let nbytes = 0;
  try {
    const file = await open(new Uint8Array(await readFile(input)));
    const checkpoint = base ? await open(new Uint8Array(await readFile(base))) : undefined;
    await file.restore((bytes) => {
      hash.update(bytes);
      nbytes += bytes.length;
    }, { base: checkpoint });
    return { code: "", nbytes, sha256: hash.digest("hex") };
  } catch (e) {
    if (e instanceof WcodecError) return { code: e.code, message: e.message };
    return { code: "crash", message: e.stack };
  }
}

for await (const line of createInterface({ input: process.stdin })) {
  process.stdout.write(`${JSON.stringify(await outcome(JSON.parse(line)))}\n`);
}
