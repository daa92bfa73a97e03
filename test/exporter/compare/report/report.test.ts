import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { Ajv2020 } from 'ajv/dist/2020.js';
import { parseHTML } from 'linkedom';
import * as v from 'valibot';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { parsePareto } from '../../../../exporter/compare/index.js';
import { changesSince, readBaseline } from '../../../../exporter/compare/report/baseline.js';
import { failures, parseConditions } from '../../../../exporter/compare/report/conditions.js';
import { reportHtml } from '../../../../exporter/compare/report/html.js';
import { type Report, reportSchema } from '../../../../exporter/compare/report/schema.js';
import { writeReport } from '../../../../exporter/compare/report/write.js';
import { verdicts } from '../../../../exporter/compare/verdicts.js';
import { quantisationLike } from '../../../../exporter/compare/yardsticks.js';
import { reportJsonSchema } from '../../../../scripts/report-schema.js';
import { ROOT } from '../../../support/models.js';
import { exampleReport } from './example.js';

const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'fla-report-'));
afterAll(() => fs.rmSync(folder, { recursive: true }));
let report: Report;
beforeAll(async () => {
  report = await exampleReport();
});
const copy = () => structuredClone(report);
const model = (r: Report) => r.rows.find((row) => row.id === 'model')!;

describe('schema', () => {
  test('the example keeps to it, in valibot and in the JSON Schema of the docs', () => {
    expect(v.parse(reportSchema, report)).toEqual(report);
    const validate = new Ajv2020().compile(reportJsonSchema());
    expect(validate(report), JSON.stringify(validate.errors)).toBe(true);
    expect(validate({ ...report, rows: 3 })).toBe(false);
  });
  test('docs/compare-report.schema.json is up to date (npm run gen)', () => {
    const file = path.join(ROOT, 'docs/compare-report.schema.json');
    expect(JSON.parse(fs.readFileSync(file, 'utf8'))).toEqual(reportJsonSchema());
  });
});

describe('conditions', () => {
  const check = (text: string, baseline?: Report, now = report) =>
    failures(now, parseConditions(text), baseline);

  test('hold or not', () => {
    const kl = model(report).language!.kld.mean.value!;
    expect(check(`kl>${kl * 0.9}`)).toEqual([expect.stringMatching(/^a <b>.*: kl>.*: kl is /)]);
    expect(check(`kl>${kl * 1.1}`)).toEqual([]);
    expect(check('same_top<0.5,speedup<1, parity>1e-4')).toEqual([]);
    expect(check('speedup<=2')).toHaveLength(1);
    expect(check('recall<1,recall.passkey<1,recall.mqar>=0')).toHaveLength(3);
  });
  test('in percent of a baseline', () => {
    const before = copy();
    model(before).language!.kld.mean.value! /= 1.1;
    expect(check('kl>+5%', before)).toEqual([expect.stringMatching(/\(baseline /)]);
    expect(check('kl>+11%', before)).toEqual([]);
    expect(check('kl<-5%', before)).toEqual([]);
  });
  test('on what was not measured are refused', () => {
    const bare = copy();
    model(bare).language = null;
    expect(() => check('ppl>2', undefined, bare)).toThrow(/ppl was not measured/);
    expect(() => check('ppl>+2%', bare)).toThrow(/the baseline has no ppl/);
  });
  test.each(['', 'kl', 'kl>', 'kl>many', 'kl>0.1,', '>3', 'kl!3'])('%j is refused', (text) => {
    expect(() => parseConditions(text)).toThrow(/fail-if: condition must be like/);
  });
});

describe('baseline', () => {
  test('nothing differs from itself', () => {
    expect(changesSince(report, copy())).toEqual([]);
  });
  test('says what changed, by row and metric', () => {
    const before = copy();
    model(before).language!.ppl.ratio.value = 7;
    model(before).state_bytes = null;
    expect(changesSince(report, before)).toEqual([
      { row: 'model', metric: 'ppl', before: 7, after: model(report).language!.ppl.ratio.value },
      { row: 'model', metric: 'state_bytes', before: null, after: 4096 },
    ]);
  });
  test.each<[string, (r: Report) => void]>([
    ['text', (r) => (r.settings.text!.sha256 = 'other')],
    ['tasks', (r) => (r.settings.tasks!.samples = 9)],
    ['seed', (r) => (r.settings.seed = 9)],
  ])('measured with another %s is refused', (what, change) => {
    const before = copy();
    change(before);
    expect(() => changesSince(report, before)).toThrow(`the same ${what}`);
  });
  test('is read from a file or its folder; what is no report is refused with the reason', async () => {
    await writeReport(report, folder);
    expect(readBaseline(folder)).toEqual(report);
    expect(readBaseline(path.join(folder, 'report.json'))).toEqual(report);
    const file = path.join(folder, 'other.json');
    const refusal = (content: string) => {
      fs.writeFileSync(file, content);
      return expect(() => readBaseline(file));
    };
    refusal('{').toThrow(/is no JSON/);
    refusal('null').toThrow(/is no report/);
    refusal(JSON.stringify({ ...report, version: 99 })).toThrow(/version 1, received version 99/);
    refusal(JSON.stringify({ ...report, rows: [3] })).toThrow(/is no report: rows\.0/);
  });
});

describe('verdicts', () => {
  test('a model that is better than the window is not named', () => {
    expect(verdicts(report)).toEqual([]);
  });
  test('one that is no better is, by divergence and by recall', () => {
    const now = copy();
    model(now).language = now.rows.find((r) => r.id === 'zeroed')!.language;
    model(now).tasks = now.rows.find((r) => r.id === 'window')!.tasks;
    expect(verdicts(now)).toHaveLength(3); // by divergence also no better than zeroed
    expect(verdicts(now).join('\n')).toMatch(/no better than window only: mean KL divergence/);
    expect(verdicts(now).join('\n')).toMatch(/recalls no more than window only: /);
  });
  test('parity beyond 1e-4 is', () => {
    const now = copy();
    now.rows.find((r) => r.id === 'parity')!.outputs!.logits!.max_abs = 2e-4;
    expect(verdicts(now)).toEqual([expect.stringMatching(/written again differs by 0\.0002/)]);
  });
});

test('yardsticks', () => {
  expect(quantisationLike(0.0001)).toBe('< Q8_0');
  expect(quantisationLike(0.003)).toBe('< Q5_K_M');
  expect(quantisationLike(0.05)).toBe('< Q3_K_M');
  expect(quantisationLike(0.51)).toBe('10 x Q3_K_M');
  expect(quantisationLike(null)).toBe('-');
});

test('a Pareto table is a list, or stands under its name', () => {
  const point = {
    kept: 1,
    layers: null,
    ppl_ratio: 1.1,
    kld: 0.2,
    recall: null,
    state_bytes: null,
  };
  expect(parsePareto('[{"kept":1,"ppl_ratio":1.1,"kld":0.2}]', 'x')).toEqual([point]);
  expect(parsePareto('{"pareto":[{"kept":1,"ppl_ratio":1.1,"kld":0.2}]}', 'x')).toEqual([point]);
  expect(() => parsePareto('{}', 'x')).toThrow(/x: is no Pareto table/);
});

describe('report.html', () => {
  let html: string;
  beforeAll(() => {
    html = reportHtml(report);
  });

  test('needs nothing from elsewhere', () => {
    const { document } = parseHTML(html);
    expect(
      document.querySelectorAll('script, link, img, iframe, object, [src], [href]'),
    ).toHaveLength(0);
    expect(html.replaceAll(/xmlns(:\w+)?="http[^"]*"/g, '')).not.toMatch(
      /https?:|url\(|@import|file:/,
    );
  });
  test('has every part', () => {
    const { document } = parseHTML(html);
    const heads = [...document.querySelectorAll('h2')].map((h) => h.textContent);
    expect(heads).toEqual([
      'What stands out',
      'Predictions',
      'Recall at length',
      'Which layers stay softmax',
      'Outputs on the same inputs',
      'Time and memory',
      'About this report',
    ]);
    // divergence, histogram, drift, loss; recall of two tasks and depths of one; Pareto; four costs
    expect(document.querySelectorAll('figure svg')).toHaveLength(4 + 3 + 1 + 4);
    for (const svg of document.querySelectorAll('svg')) {
      expect(svg.getAttribute('aria-label')).toBeTruthy();
      expect(svg.outerHTML).not.toMatch(/NaN|undefined|Infinity/);
    }
  });
  test('names cannot become markup', () => {
    expect(html).not.toContain('<b>');
    expect(html).not.toContain('<i>');
    expect(html).toContain('a &lt;b&gt;&amp;&quot;c&quot;.onnx');
  });
  test('leaves out what was not measured', () => {
    const bare = copy();
    Object.assign(bare, { pareto: null, notices: [], changes: null });
    Object.assign(bare.settings, { text: null, tasks: null });
    for (const row of bare.rows)
      Object.assign(row, { language: null, tasks: null, cost: null, state_bytes: null });
    const { document } = parseHTML(reportHtml(bare));
    expect([...document.querySelectorAll('h2')].map((h) => h.textContent)).toEqual([
      'Outputs on the same inputs',
      'About this report',
    ]);
  });
  test('values without a logarithm, without error or not finite are drawn or left out', () => {
    const odd = copy();
    const language = model(odd).language!;
    language.kld.mean = { value: null, error: null };
    for (const d of language.drift) d.kld = { value: 0, error: null };
    model(odd).cost![0]!.rewritten_ms = null;
    model(odd).cost![1]!.rewritten_peak_bytes = 0;
    expect(reportHtml(odd)).not.toMatch(/NaN|undefined|Infinity/);
  });
});

test('files appear complete or not at all', async () => {
  const file = path.join(folder, 'taken');
  fs.writeFileSync(file, '');
  await expect(writeReport(report, path.join(file, 'in'))).rejects.toThrow(
    /taken.*cannot be written/,
  );
  const made = path.join(folder, 'a/b');
  expect(await writeReport(report, made)).toEqual([
    path.join(made, 'report.json'),
    path.join(made, 'report.html'),
  ]);
  expect(fs.readdirSync(made).sort()).toEqual(['report.html', 'report.json']);
});
