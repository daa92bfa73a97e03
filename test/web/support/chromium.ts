/** A real Chromium on its software GPU, for tests: everything has a hard time limit, and nothing outlives its test file. */
import fs from 'node:fs';
import { type Browser, type BrowserContextOptions, chromium, type Page } from 'playwright-core';
import { afterAll, describe } from 'vitest';

const PLACES = [
  process.env.CHROMIUM_PATH ?? '',
  '/usr/bin/chromium',
  '/usr/bin/chromium-browser',
  '/usr/bin/google-chrome',
];

/** Where Chromium is, or undefined. */
export const chromiumPath = PLACES.find((place) => place !== '' && fs.existsSync(place));

/** SwiftShader as the GPU. */
const SOFTWARE_GPU = ['--enable-unsafe-webgpu', '--use-webgpu-adapter=swiftshader'];

/** No traffic of the browser's own; memory is told exactly, and can be collected. */
const ARGUMENTS = [
  '--no-sandbox',
  '--js-flags=--expose-gc,--liftoff-only',
  '--enable-precise-memory-info',
  '--disable-quic',
  '--no-first-run',
  '--disable-background-networking',
  '--disable-component-update',
  '--disable-sync',
];

/** Longest life of a browser. */
const LIFE_MS = 170_000;

if (!chromiumPath && !process.env.CI)
  console.warn(
    '\n*** No Chromium: tests in the browser are SKIPPED. Debian: apt-get install chromium ***\n',
  );

/** As `describe`; skipped without Chromium, unless CI is set: then it fails. */
export const describeInBrowser: (name: string, body: () => void) => void = describe.skipIf(
  !chromiumPath && !process.env.CI,
);

const open = new Set<Browser>();
afterAll(async () => {
  for (const browser of [...open]) await close(browser);
});

async function close(browser: Browser): Promise<void> {
  open.delete(browser);
  await browser.close();
}

/** Starts Chromium; it is closed after the test file, and when it takes longer than `lifeMs`. */
export async function launch({ webgpu = true, lifeMs = LIFE_MS } = {}): Promise<Browser> {
  if (!chromiumPath) throw new Error('Chromium was not found; set CHROMIUM_PATH');
  const browser = await chromium.launch({
    executablePath: chromiumPath,
    headless: true,
    timeout: 30_000,
    args: [...ARGUMENTS, ...(webgpu ? SOFTWARE_GPU : ['--disable-gpu'])],
  });
  open.add(browser);
  const limit = setTimeout(() => close(browser), lifeMs);
  browser.on('disconnected', () => clearTimeout(limit));
  return browser;
}

/** A new page whose errors become the test's: `errors` collects what is thrown on it. */
export async function openPage(
  browser: Browser,
  url: string,
  options: BrowserContextOptions = {},
): Promise<Page & { errors: string[]; told: string[] }> {
  const context = await browser.newContext(options);
  context.setDefaultTimeout(60_000);
  const page = Object.assign(await context.newPage(), {
    errors: [] as string[],
    told: [] as string[],
  });
  page.on('pageerror', (error) => page.errors.push(error.message));
  page.on('console', (message) => {
    if (message.type() === 'info' || message.type() === 'log') page.told.push(message.text());
    if (process.env.FLA_TEST_VERBOSE) console.log(`[page] ${message.text()}`);
  });
  await page.goto(url);
  return page;
}

/**
 * Opens the page that has the package and onnxruntime-web as globals, and `wasmMemories`, the memories that WebAssembly was given.
 */
export async function openHarness(browser: Browser, origin: string, query = '') {
  const page = await openPage(browser, `${origin}/test/web/support/harness.html${query}`);
  await page.waitForFunction(() => document.title === 'ready');
  return page;
}
