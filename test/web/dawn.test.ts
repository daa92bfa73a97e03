/** The web runtime in Node, on the npm package `webgpu`, with the software GPU that Chromium brings. */
import { execFile } from 'node:child_process';
import fs from 'node:fs';
import path from 'node:path';
import { promisify } from 'node:util';
import { afterAll, describe, expect, it } from 'vitest';
import { StatefulSession } from '../../runtime/node/index.js';
import { relativeError } from '../cases/tensors.js';
import { ROOT } from '../support/models.js';
import { missingSoftwareGpu, softwareDriver } from '../support/webgpu.js';
import { rewriteTinylm, temporaryFolder, tokens } from './support/models.js';

const folder = temporaryFolder();
afterAll(() => fs.rmSync(folder, { recursive: true }));

describe.skipIf(missingSoftwareGpu())('onnx-fla/web in Node on Dawn', () => {
  it('gives what the CPU gives', async () => {
    const ids = tokens(12);
    const model = await rewriteTinylm(folder, 'tinylm.onnx');
    const icd = path.join(softwareDriver!, 'vk_swiftshader_icd.json');
    const child = path.join(ROOT, 'test/web/support/dawn_child.ts');
    // Without --liftoff-only, V8 takes half a minute to optimize ONNX Runtime's code.
    const { stdout } = await promisify(execFile)(
      process.execPath,
      ['--liftoff-only', '--import', 'tsx', child, model, JSON.stringify(ids)],
      {
        cwd: ROOT,
        timeout: 100_000,
        maxBuffer: 2 ** 24,
        env: {
          ...process.env,
          LD_LIBRARY_PATH: softwareDriver,
          VK_DRIVER_FILES: icd,
          VK_ICD_FILENAMES: icd,
        },
      },
    );
    const got = JSON.parse(stdout.trim().split('\n').at(-1)!);
    expect(got).toMatchObject({ device: 'webgpu', kernelCalls: 4 });
    const session = await StatefulSession.create(model);
    const { logits } = await session.prefill(ids);
    await session.dispose();
    const [ours, theirs] = [got.logits, logits.data].map((values) => Float64Array.from(values));
    // WGSL's sin and cos; see session.test.ts.
    expect(relativeError(ours, theirs)).toBeLessThan(2 ** -11);
  }, 120_000);
});
