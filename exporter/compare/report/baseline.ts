import fs from 'node:fs';
import path from 'node:path';
import * as v from 'valibot';
import { FlaError } from '../../../ops/error.js';
import { readText } from '../../text/read_text.js';
import { metrics } from './metrics.js';
import { type Change, FORMAT, type Report, reportSchema, VERSION } from './schema.js';

/**
 * Reads a report that was kept: a report.json, or the folder with one.
 *
 * @throws FlaError `io` when it cannot be read, `invalid_argument` when it is no report of this version
 */
export function readBaseline(file: string): Report {
  const folder = fs.statSync(file, { throwIfNoEntry: false })?.isDirectory();
  const name = folder ? path.join(file, 'report.json') : file;
  const text = readText(name);
  let json: unknown;
  try {
    json = JSON.parse(text);
  } catch (error) {
    return refuse(`${name}: is no JSON: ${(error as Error).message}`);
  }
  const { format, version } = (json ?? {}) as Partial<Report>;
  if (format === FORMAT && version !== VERSION) {
    refuse(`${name}: must be a report of version ${VERSION}, received version ${version}`);
  }
  const result = v.safeParse(reportSchema, json);
  if (result.success) return result.output;
  const [issue] = result.issues;
  return refuse(`${name}: is no report: ${v.getDotPath(issue) ?? 'it'}: ${issue.message}`);
}

function refuse(message: string): never {
  throw new FlaError('invalid_argument', `baseline: ${message}`);
}

type Settings = Report['settings'];

/**
 * Refuses a baseline that was measured on something else.
 *
 * @throws FlaError `invalid_argument` naming what differs
 */
export function checkComparable(now: Settings, before: Settings): void {
  const parts = (settings: Settings) => ({
    'original model': settings.original,
    seed: settings.seed,
    'window and sinks': [settings.window, settings.sinks],
    text: settings.text && [settings.text.sha256, settings.text.context],
    tasks: settings.tasks,
  });
  const [a, b] = [parts(now), parts(before)];
  for (const key of Object.keys(a) as (keyof typeof a)[]) {
    if (JSON.stringify(a[key]) !== JSON.stringify(b[key])) {
      refuse(`must have been measured with the same ${key}; measure it again`);
    }
  }
}

/** What differs from a baseline, row by row; rows are known by their id. Times are left out: they differ always. */
export function changesSince(now: Report, before: Report): Change[] {
  checkComparable(now.settings, before.settings);
  const compared = metrics(now.settings.tasks?.names ?? []).filter((m) => m.needs !== 'lengths');
  return now.rows.flatMap((row) => {
    const old = before.rows.find((r) => r.id === row.id);
    if (!old) return [];
    return compared.flatMap((metric): Change[] => {
      if (metric.name === 'parity') return [];
      const [b, a] = [metric.of(old, before), metric.of(row, now)];
      return a === b ? [] : [{ row: row.id, metric: metric.name, before: b, after: a }];
    });
  });
}
