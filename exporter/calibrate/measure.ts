import type * as Ort from 'onnxruntime-node';
import { argmax, klDivergence, logSoftmax, mean } from '../compare/statistics.js';
import { batchFor } from './calibrate.js';
import type { CalibrationData } from './data/index.js';

/** How a student's predictions differ from the teacher's on held-out sequences. */
export interface Quality {
  /** exp of the mean difference of log-likelihoods. */
  ppl_ratio: number;
  /** Mean KL(teacher || student) in nats, of all tokens and of those that repeat a segment from beyond the window. */
  kl: number;
  kl_repeated: number | null;
  /** Share of tokens at which both like the same token best. */
  same_top: number;
  /** Share of repeated tokens (from beyond the window) that are predicted right, and that of the teacher. */
  recall: number | null;
  recall_teacher: number | null;
  /** The same by how far back the segment begins, in multiples of the window. */
  recall_by_distance: Record<number, number>;
  tokens: number;
  repeated: number;
}

/** Compares next-token predictions on the first `batches` held-out batches. */
export async function measure(
  teacher: Ort.InferenceSession,
  student: Ort.InferenceSession,
  logits: string,
  data: CalibrationData,
  {
    batches = 8,
    window = 64,
    signal,
  }: { batches?: number; window?: number; signal?: AbortSignal } = {},
): Promise<Quality> {
  const kl: number[] = [];
  const klRepeated: number[] = [];
  const difference: number[] = [];
  let same = 0;
  let [right, rightTeacher] = [0, 0];
  const byDistance = new Map<number, { right: number; all: number }>();
  for (let i = 0; i < batches; i++) {
    signal?.throwIfAborted();
    const feeds = await batchFor(teacher, data, 'held-out', i);
    const p = (await teacher.run(feeds))[logits]!;
    const q = (await student.run(await batchFor(student, data, 'held-out', i)))[logits]!;
    const repeats = data.repeats('held-out', i);
    const given = await data.inputs('held-out', i);
    const ids = given.ids ?? given.input_ids ?? Object.values(given)[0]!;
    const [B, T, V] = p.dims as [number, number, number];
    const rowOf = (x: Ort.Tensor, b: number, t: number) =>
      (x.data as Float32Array).subarray((b * T + t) * V, (b * T + t + 1) * V);
    for (let b = 0; b < B; b++) {
      const repeat = repeats[b];
      for (let t = 0; t + 1 < T; t++) {
        const next = ids[b * T + t + 1]!;
        const [logP, logQ] = [logSoftmax(rowOf(p, b, t)), logSoftmax(rowOf(q, b, t))];
        const d = klDivergence(logP, logQ);
        const [topP, topQ] = [argmax(logP), argmax(logQ)];
        kl.push(d);
        difference.push(logP[next]! - logQ[next]!);
        if (topP === topQ) same++;
        const known = repeat && t >= repeat.second && t < repeat.second + repeat.length - 1;
        if (!known || repeat.second - repeat.first <= window) continue;
        klRepeated.push(d);
        if (topP === next) rightTeacher++;
        if (topQ === next) right++;
        const multiple = Math.floor((repeat.second - repeat.first) / window) * window;
        const there = byDistance.get(multiple) ?? { right: 0, all: 0 };
        byDistance.set(multiple, there);
        there.all++;
        if (topQ === next) there.right++;
      }
    }
  }
  const repeated = klRepeated.length;
  return {
    ppl_ratio: Math.exp(mean(difference)),
    kl: mean(kl),
    kl_repeated: repeated ? mean(klRepeated) : null,
    same_top: same / kl.length,
    recall: repeated ? right / repeated : null,
    recall_teacher: repeated ? rightTeacher / repeated : null,
    recall_by_distance: Object.fromEntries(
      [...byDistance].sort(([a], [b]) => a - b).map(([d, n]) => [d, n.right / n.all]),
    ),
    tokens: kl.length,
    repeated,
  };
}
