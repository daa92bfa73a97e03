import type { Report, ReportRow } from './report/schema.js';

const PARITY = 1e-4;
const WORTH = 0.05; // of recall

/** What the rows say when they are held against the controls, one sentence each. */
export function verdicts({ rows }: Pick<Report, 'rows'>): string[] {
  const row = (id: string) => rows.find((r) => r.id === id);
  const original = row('original');
  const found: string[] = [];
  const parity = largestDifference(row('parity'));
  if (parity !== null && !(parity <= PARITY)) {
    found.push(
      `softmax attention written again differs by ${short(parity)}, more than ${PARITY}: the model was misunderstood, or is very sensitive`,
    );
  }
  for (const model of rows.filter((r) => r.role === 'model' && linearLayers(r) > 0)) {
    for (const control of [row('window'), row('zeroed')]) {
      if (!control) continue;
      const [a, b] = [model.language?.kld.mean, control.language?.kld.mean];
      const kld = a?.value != null && b?.value != null ? ([a.value, b.value] as const) : null;
      if (kld && kld[0] >= kld[1]) {
        found.push(
          `${model.name} is no better than ${control.name}: mean KL divergence ${short(kld[0])} against ${short(kld[1])}`,
        );
      }
      const [x, y] = [meanRecall(model), meanRecall(control)];
      // Nothing to lose where the original recalls no more than the control.
      const all = original ? meanRecall(original) : null;
      if (x !== null && y !== null && all !== null && all - y > WORTH && x <= y) {
        found.push(
          `${model.name} recalls no more than ${control.name}: ${percent(x)} against ${percent(y)}`,
        );
      }
    }
  }
  return found;
}

function linearLayers({ attention }: ReportRow): number {
  return attention ? attention.layers - attention.softmax : 0;
}

/** Over all outputs; null without any, or where one is not finite. */
export function largestDifference(row: ReportRow | undefined): number | null {
  const values = Object.values(row?.outputs ?? {}).map((o) => o.max_abs);
  return values.length > 0 && !values.includes(null) ? Math.max(...(values as number[])) : null;
}

/** Recall over all tasks, lengths and depths, or those of one task; every one counts the same. */
export function meanRecall({ tasks }: ReportRow, task?: string): number | null {
  const values = (tasks ?? []).flatMap((t) =>
    (task === undefined || t.task === task) && t.recall.value !== null ? [t.recall.value] : [],
  );
  return values.length > 0 ? values.reduce((a, b) => a + b, 0) / values.length : null;
}

const short = (x: number) => String(Number(x.toPrecision(3)));
const percent = (x: number) => `${(100 * x).toFixed(1)} %`;
