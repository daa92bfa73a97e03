/** The page of examples/web as it is built, in a real Chromium: what it does, what it says when things go wrong, and how it looks. */
import fs from 'node:fs';
import { createRequire } from 'node:module';
import path from 'node:path';
import { build, preview } from 'vite';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { parseModel } from '../../exporter/index.js';
import { generate } from '../../exporter/text/generate.js';
import { LanguageModel } from '../../exporter/text/language_model.js';
import { loadTokenizer } from '../../exporter/text/tokenizer.js';
import { ROOT, TINYLM } from '../support/models.js';
import { describeInBrowser, launch, openPage } from './support/chromium.js';
import { rewriteTinylm, temporaryFolder } from './support/models.js';

const folder = temporaryFolder();
const ARTIFACTS = path.join(ROOT, 'test/web/artifacts');
const AXE = fs.readFileSync(createRequire(import.meta.url).resolve('axe-core/axe.min.js'), 'utf8');
const PROMPT = 'Mr. Speaker, Members of the Congress:';
const TOKENS = 5;

type Page = Awaited<ReturnType<typeof openPage>>;

let server: Awaited<ReturnType<typeof preview>>;
let url = '';
let page: Page;

const DESKTOP = { width: 1280, height: 900 };
const MOBILE = { width: 390, height: 844 };

/**
 * The page as it stands, on a desktop and a mobile screen, light and dark: nothing reaches beyond the screen, axe-core has nothing to complain
 * about, and the screenshots are kept to be looked at.
 */
async function inspect(state: string, of: Page = page): Promise<void> {
  for (const [device, size] of Object.entries({ mobile: MOBILE, desktop: DESKTOP })) {
    await of.setViewportSize(size);
    for (const theme of ['Dark', 'Light']) {
      await of.getByLabel(theme).check();
      await of.waitForFunction(
        (width) =>
          document.documentElement.scrollWidth <= width &&
          [...document.querySelectorAll('canvas')].every((canvas) => canvas.clientWidth <= width),
        size.width,
      );
      const name = `${state}-${device}-${theme.toLowerCase()}.png`;
      await of.screenshot({ path: path.join(ARTIFACTS, name), fullPage: true });
      expect(await complaints(of), name).toEqual([]);
    }
  }
}

/** What axe-core has to complain about. */
async function complaints(of: Page): Promise<string[]> {
  await of.evaluate(AXE);
  const { violations } = await of.evaluate(() =>
    (
      globalThis as unknown as {
        axe: { run(): Promise<{ violations: { id: string; nodes: { html: string }[] }[] }> };
      }
    ).axe.run(),
  );
  return violations.map(({ id, nodes }) => `${id}: ${nodes.map(({ html }) => html).join(' ')}`);
}

const button = (section: string, of: Page = page) =>
  of.locator(`#${section} button.primary`).last();

async function openSample(of: Page): Promise<void> {
  await of.click('#sample');
  await of.locator('#facts dl').waitFor();
}

/** Greedy text of a model in Node. */
async function textOnNode(file: string): Promise<string> {
  const tokenizer = loadTokenizer(TINYLM.tokenizer);
  const model = await LanguageModel.open(file);
  const { ids } = await generate(model, tokenizer.encode(PROMPT), {
    maxNewTokens: TOKENS,
    temperature: 0,
    topK: 0,
    topP: 0.95,
    seed: 1,
  });
  await model.release();
  return tokenizer.decode(ids);
}

describeInBrowser('the page', () => {
  beforeAll(async () => {
    fs.rmSync(ARTIFACTS, { recursive: true, force: true });
    fs.mkdirSync(ARTIFACTS, { recursive: true });
    const configFile = path.join(ROOT, 'examples/web/vite.config.ts');
    const outDir = path.join(folder, 'page');
    await build({ configFile, logLevel: 'error', build: { outDir, emptyOutDir: true } });
    server = await preview({
      configFile,
      logLevel: 'error',
      build: { outDir },
      preview: { port: 0 },
    });
    url = server.resolvedUrls!.local[0];
    page = await openPage(await launch(), url, {
      viewport: DESKTOP,
      colorScheme: 'light',
    });
  });
  afterAll(async () => {
    await server?.close();
    fs.rmSync(folder, { recursive: true });
  });

  it('starts empty, and says what it runs on', async () => {
    await page.getByText(/^WebGPU, /).waitFor();
    expect(await page.title()).toContain('onnx-fla');
    for (const section of ['attention', 'write', 'length'])
      expect(await page.locator(`#${section} .empty`).count()).toBe(1);
    await inspect('1-empty');
  });

  it('says in words what is wrong with a file', async () => {
    const error = page.locator('#model-error');
    const give = async (files: { name: string; buffer: Buffer }[]) => {
      await page.setInputFiles(
        '#files',
        files.map((file) => ({ ...file, mimeType: 'application/octet-stream' })),
      );
      await error.waitFor();
      return error.textContent();
    };
    const model = fs.readFileSync(TINYLM.modelKv);
    expect(await give([{ name: 'notes.txt', buffer: Buffer.from('hello') }])).toBe(
      'None of these is an .onnx file: notes.txt. Choose a model, together with its tokenizer.json if it has one.',
    );
    expect(await give([{ name: 'text.onnx', buffer: Buffer.from('<!doctype html>') }])).toMatch(
      /not a readable ONNX model.*Is it an ONNX file, and complete\?$/,
    );
    expect(await give([{ name: 'model_kv.onnx', buffer: model }])).toBe(
      'model_kv.onnx keeps weights in the file weights.fp16.bin. Choose both together.',
    );
    const weights = { name: 'weights.fp16.bin', buffer: Buffer.alloc(10) };
    expect(
      await give([{ name: 'a.onnx', buffer: model }, { name: 'b.onnx', buffer: model }, weights]),
    ).toBe('These are 2 models: a.onnx, b.onnx. Choose one.');
    await inspect('2-error');
  });

  it('opens the sample by keyboard, and stays usable while it does', async () => {
    // The weights are held back until the page has been looked at while it loads.
    let release = () => {};
    const held = new Promise<void>((resolve) => (release = resolve));
    await page.route('**/weights*', (route) => held.then(() => route.continue()));
    await page.evaluate(() => localStorage.clear());
    await page.reload();
    await page.keyboard.press('Tab');
    expect(await page.evaluate(() => document.activeElement!.textContent)).toBe(
      'Skip to the content',
    );
    await page.keyboard.press('Tab');
    await page.keyboard.press('ArrowRight');
    await page.keyboard.press('ArrowRight');
    expect(await page.evaluate(() => document.documentElement.dataset.theme)).toBe('dark');
    await page.keyboard.press('Tab');
    expect(await page.evaluate(() => document.activeElement!.id)).toBe('sample');
    await page.keyboard.press('Enter');
    await page.getByText(/^Fetching the sample, 0\.\d MB$/).waitFor();
    expect(await page.locator('#facts dl').isVisible()).toBe(false);
    await inspect('3-loading');
    const start = performance.now();
    release();
    await page.locator('#facts dl').waitFor();
    const ms = performance.now() - start;
    const facts = (await page.locator('#facts').textContent())!;
    expect(facts).toContain('989 nodes, opset 16');
    console.log(
      `page: ${ms.toFixed(0)} ms from the server's answer to what is in the sample, of them ${/Read in(.*)$/.exec(facts)![1]} to find its attention`,
    );
    expect(await page.locator('#attention tbody tr').allTextContents()).toEqual(
      [0, 1, 2, 3].map((i) => `${i}causal + padding4/2 × 64yes/m/layers.${i}/self_attn/Softmax`),
    );
    await page.unroute('**/weights*');
  });

  it('rewrites in the browser what the rewriter writes in Node', async () => {
    await page.getByLabel('Rewrite layer 0').uncheck();
    expect(await button('attention').textContent()).toBe('Rewrite 3 layers');
    await page.getByLabel('Rewrite layer 0').check();
    await page.getByLabel('Log decay').fill('3');
    expect(await button('attention').isDisabled()).toBe(true);
    await page.getByLabel('Log decay').fill('-0.1');
    await button('attention').click();
    const result = page.locator('#attention .result');
    await result.waitFor();
    expect(await result.textContent()).toMatch(
      /^4 of 4 layers rewritten in .*, \d+ nodes taken out\.Download tinylm\.gated-delta\.onnx/,
    );
    const bytes = await page.evaluate(async () => {
      const link = document.querySelector<HTMLAnchorElement>('#attention .result a')!;
      return [...new Uint8Array(await (await fetch(link.href)).arrayBuffer())];
    });
    const ours = parseModel(Uint8Array.from(bytes)).graph;
    const file = await rewriteTinylm(folder, 'tinylm.onnx');
    const theirs = parseModel(new Uint8Array(fs.readFileSync(file))).graph;
    expect(ours.nodes.map((node) => node.proto)).toEqual(theirs.nodes.map((node) => node.proto));
  });

  it('both models write, as they do in Node', async () => {
    await page.getByLabel('New tokens').fill(String(TOKENS));
    await page.getByLabel('Temperature').fill('0');
    await button('write').click();
    await page.waitForFunction(() =>
      [...document.querySelectorAll('#write .status')].every((s) => /^Done/.test(s.textContent!)),
    );
    const texts = await page.locator('#write .output').allTextContents();
    expect(texts).toEqual([
      PROMPT + (await textOnNode(TINYLM.modelKv)),
      PROMPT + (await textOnNode(path.join(folder, 'tinylm.onnx'))),
    ]);
    const numbers = await page.locator('#write .numbers').allTextContents();
    expect(numbers[1]).toMatch(/Carried along128 KiBGPU memory\d/);
  });

  it('stops when it is told to', async () => {
    await page.getByLabel('New tokens').fill('1000');
    await button('write').click();
    await page.locator('#write .status', { hasText: 'Writing' }).first().waitFor();
    expect(await button('write').textContent()).toBe('Stop');
    await inspect('4-writing');
    await button('write').click();
    await page.locator('#write button.primary', { hasText: 'Write' }).waitFor();
    expect(await page.locator('#write .error').isVisible()).toBe(false);
    for (const status of await page.locator('#write .status').allTextContents())
      expect(status).toMatch(/^Stopped/);
  });

  it('measures what length costs, and draws it as it goes', async () => {
    await page.locator('#length select').selectOption('256');
    await button('length').click();
    await page.locator('#length tbody tr').first().waitFor({ state: 'attached' });
    await page.locator('#length p.result').waitFor();
    expect(await page.locator('#length p.result').textContent()).toMatch(
      /^After 256 tokens the original and the rewritten model carry along 1\.\d+ MiB and 128 KiB; the next token takes .* and .*\.$/,
    );
    await page.locator('#length summary').click();
    expect(await page.locator('#length tbody tr').count()).toBe(4);
    const drawn = await page.locator('#length canvas').evaluateAll((all) =>
      all.map((canvas) => {
        const { width, height } = canvas as HTMLCanvasElement;
        const { data } = (canvas as HTMLCanvasElement)
          .getContext('2d')!
          .getImageData(0, 0, width, height);
        return new Set(new Uint32Array(data.buffer)).size > 10;
      }),
    );
    expect(drawn).toEqual([true, true]);
    await inspect('5-done');
  }, 120_000);

  it('takes a file that is dropped, and runs models of other kinds on random input', async () => {
    const other = await openPage(page.context().browser()!, url);
    const bytes = [...fs.readFileSync(path.join(ROOT, 'test/fixtures/torch/vit.onnx'))];
    const dataTransfer = await other.evaluateHandle((bytes) => {
      const transfer = new DataTransfer();
      transfer.items.add(new File([Uint8Array.from(bytes)], 'vit.onnx'));
      return transfer;
    }, bytes);
    await other.dispatchEvent('#drop', 'dragover', { dataTransfer });
    expect(await other.locator('#drop.over').count()).toBe(1);
    await other.dispatchEvent('#drop', 'drop', { dataTransfer });
    expect(await other.locator('#drop.over').count()).toBe(0);
    await other.locator('#facts dl').waitFor();
    await button('attention', other).click();
    await other.locator('#attention .result').waitFor();
    await button('write', other).click();
    const result = other.locator('#write .result');
    await result.waitFor();
    expect(await result.textContent()).toMatch(/^Original.*Rewritten.*relative difference/);
    await inspect('6-other', other);
    expect(other.errors).toEqual([]);
    await other.context().close();
  });

  it('without WebGPU it says so, and works', async () => {
    const bare = await openPage(await launch({ webgpu: false }), url);
    await bare.getByText(/^No WebGPU: WebAssembly/).waitFor();
    await openSample(bare);
    await button('attention', bare).click();
    await bare.locator('#attention .result').waitFor();
    await bare.getByLabel('New tokens').fill('3');
    await button('write', bare).click();
    await bare.waitForFunction(() =>
      [...document.querySelectorAll('#write .status')].every((s) => /^Done/.test(s.textContent!)),
    );
    expect(bare.errors).toEqual([]);
  });

  it('nothing was thrown', () => {
    expect(page.errors).toEqual([]);
  });
});
