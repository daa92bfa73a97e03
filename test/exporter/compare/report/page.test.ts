/** report.html in a real browser: on a desktop and a small screen, light and dark. */
import fs from 'node:fs';
import { createRequire } from 'node:module';
import os from 'node:os';
import path from 'node:path';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { reportHtml } from '../../../../exporter/compare/report/html.js';
import { describeInBrowser, launch, openPage } from '../../../web/support/chromium.js';
import { exampleReport } from './example.js';

const AXE = fs.readFileSync(createRequire(import.meta.url).resolve('axe-core/axe.min.js'), 'utf8');
const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'fla-page-'));
afterAll(() => fs.rmSync(folder, { recursive: true }));

describeInBrowser('report.html', () => {
  let browser: Awaited<ReturnType<typeof launch>>;
  const file = path.join(folder, 'report.html');
  beforeAll(async () => {
    fs.writeFileSync(file, reportHtml(await exampleReport()));
    browser = await launch({ webgpu: false });
  });

  it.each([
    ['light', 1280],
    ['dark', 1280],
    ['light', 390],
    ['dark', 390],
  ] as const)('%s, %i pixels wide', async (colorScheme, width) => {
    const requests: string[] = [];
    const page = await openPage(browser, 'about:blank', {
      colorScheme,
      viewport: { width, height: 900 },
    });
    page.on('request', (request) => requests.push(request.url()));
    await page.goto(`file://${file}`);
    expect(requests).toEqual([`file://${file}`]);
    expect(page.errors).toEqual([]);
    const seen = await page.evaluate(() => ({
      width: document.documentElement.scrollWidth,
      paper: getComputedStyle(document.body).backgroundColor,
      charts: [...document.querySelectorAll('figure svg')].map((svg) => svg.clientHeight),
    }));
    expect(seen.width).toBeLessThanOrEqual(width);
    expect(seen.paper).toBe(colorScheme === 'light' ? 'rgb(251, 251, 250)' : 'rgb(20, 23, 26)');
    for (const height of seen.charts) expect(height).toBeGreaterThan(50);
    await page.evaluate(AXE);
    const { violations } = await page.evaluate(() =>
      (
        globalThis as unknown as {
          axe: { run(): Promise<{ violations: { id: string; nodes: { html: string }[] }[] }> };
        }
      ).axe.run(),
    );
    expect(
      violations.map((v) => `${v.id}: ${v.nodes.map((n) => n.html.slice(0, 200)).join('\n')}`),
    ).toEqual([]);
    await page.close();
  });
});
