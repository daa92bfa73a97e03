import * as v from 'valibot';

/**
 * The layout of report.json. Types, the check of baselines and docs/compare-report.schema.json all come from here. `VERSION` grows
 * when a key changes its meaning or goes away; new keys may come without.
 */
export const VERSION = 1;
export const FORMAT = 'onnx-fla report';

/** JSON has no infinities and no NaN: they are written as null. */
const measured = v.nullable(v.number());
const count = v.pipe(v.number(), v.integer(), v.minValue(0));
const share = v.pipe(v.number(), v.minValue(0), v.maxValue(1));

const about = <T extends v.GenericSchema>(schema: T, text: string) =>
  v.pipe(schema, v.description(text));

/** A number and its standard error, which is null where there is none to be had. */
const estimate = v.object({ value: measured, error: measured });

/** Perplexities on one set of tokens. */
const perplexity = v.object({
  tokens: count,
  original: measured,
  rewritten: measured,
  ratio: about(estimate, 'rewritten / original; above 1, the rewritten model predicts worse'),
});

const language = v.object({
  tokens: about(count, 'predictions compared'),
  context: about(count, 'tokens a window; each starts with nothing remembered'),
  ppl: perplexity,
  repeated: about(
    v.nullable(perplexity),
    'on tokens that end a pair of tokens seen before in the window: what can be recalled',
  ),
  rest: about(v.nullable(perplexity), 'on all other tokens'),
  correlation: about(measured, 'of the losses of either model, token by token'),
  kld: v.object({
    mean: estimate,
    median: estimate,
    p99: estimate,
    p999: estimate,
    max: measured,
  }),
  same_top: about(estimate, 'share of tokens at which both models like the same token best'),
  delta_p: about(
    v.object({ mean: estimate, rms: estimate }),
    "change of the probability of the text's own next token",
  ),
  histogram: about(
    v.object({ edges: v.array(v.number()), counts: v.array(count) }),
    'KL divergences of single tokens; what lies beyond the outer edges counts in the outer classes',
  ),
  drift: about(
    v.array(
      v.object({
        from: count,
        to: count,
        tokens: count,
        kld: estimate,
        nll_original: measured,
        nll_rewritten: measured,
      }),
    ),
    'by position in the window: tokens `from` <= position < `to`, counted from 0',
  ),
});
export type LanguageDifference = v.InferOutput<typeof language>;

const taskScore = v.object({
  task: v.string(),
  length: about(count, 'tokens asked for'),
  depth: about(v.nullable(share), 'where it lies: 0 at the start, 1 just before the question'),
  samples: count,
  answers: about(count, 'answers graded'),
  recall: about(estimate, 'share of answers right, the right tokens before them given'),
  tokens: about(share, 'share of answer tokens that the model likes best'),
  logprob: about(measured, 'mean log-probability of an answer token, nats'),
  greedy: about(
    v.nullable(share),
    'share of samples whose answer is in what the model writes by itself; null where that was not asked',
  ),
});
export type TaskScore = v.InferOutput<typeof taskScore>;

const cost = v.object({
  length: count,
  original_ms: about(
    measured,
    'median time to process `length` tokens (or the length of the free dimension) from a fresh start',
  ),
  rewritten_ms: measured,
  speedup: about(measured, 'original_ms / rewritten_ms: above 1, the rewritten model is faster'),
  original_decode_ms: about(
    measured,
    'median time of one more token after that; null for a model that remembers nothing',
  ),
  rewritten_decode_ms: measured,
  original_peak_bytes: about(measured, 'peak resident memory of a process that does nothing else'),
  rewritten_peak_bytes: measured,
  original_state_bytes: about(measured, 'carried from token to token'),
  rewritten_state_bytes: measured,
  runs: about(count, 'how often each was timed'),
  original_error: v.optional(v.string()),
  rewritten_error: v.optional(v.string()),
});
/** What one length costs either model; null where it could not be measured, or does not apply. */
export type CostRow = v.InferOutput<typeof cost>;

const output = v.object({
  max_abs: measured,
  cosine: about(measured, 'null when one of them holds values that are not finite'),
});

export const ROLES = ['original', 'control', 'model'] as const;

const row = v.object({
  id: about(v.string(), 'original, parity, zeroed, window, elu1; model, model-2, ..'),
  role: v.picklist(ROLES),
  name: v.string(),
  about: v.string(),
  backend: v.nullable(v.picklist(['fla', 'stock'])),
  attention: about(
    v.nullable(v.object({ layers: count, softmax: count })),
    'attention layers of the original, and how many of them still are softmax over all tokens',
  ),
  state_bytes: about(measured, 'carried from token to token after settings.state_tokens tokens'),
  outputs: about(
    v.nullable(v.record(v.string(), output)),
    'against the original, on the same made-up inputs',
  ),
  language: v.nullable(language),
  tasks: v.nullable(v.array(taskScore)),
  cost: v.nullable(v.array(cost)),
  error: about(v.nullable(v.string()), 'why it could not be made or run'),
});
export type ReportRow = v.InferOutput<typeof row>;

const optional = v.optional(measured, null);

const paretoPoint = v.object({
  kept: about(count, 'layers left as softmax'),
  layers: about(v.optional(v.nullable(v.array(count)), null), 'which'),
  ppl_ratio: optional,
  kld: about(optional, 'mean, nats'),
  recall: optional,
  state_bytes: optional,
});
/** What `--pareto` and the metadata of a rewritten model hold: one point for every number of softmax layers. */
export const paretoSchema = v.array(paretoPoint);
export type ParetoPoint = v.InferOutput<typeof paretoPoint>;

const change = v.object({
  row: about(v.string(), 'id'),
  metric: v.string(),
  before: measured,
  after: measured,
});
export type Change = v.InferOutput<typeof change>;

export const reportSchema = v.pipe(
  v.object({
    format: v.literal(FORMAT),
    version: v.literal(VERSION),
    run: about(
      v.object({
        created: v.string(),
        seconds: v.number(),
        versions: v.record(v.string(), v.string()),
        machine: v.string(),
      }),
      'all that differs between two runs of the same command, besides times and memory',
    ),
    settings: v.object({
      original: v.string(),
      seed: count,
      window: count,
      sinks: about(count, 'of the control that sees a window and sinks only, as window'),
      state_tokens: v.nullable(count),
      text: v.nullable(
        v.object({
          name: v.string(),
          sha256: about(v.string(), 'of the token ids that were used'),
          tokens: count,
          context: count,
        }),
      ),
      tasks: v.nullable(
        v.object({
          names: v.array(v.string()),
          lengths: v.array(count),
          depths: v.array(share),
          samples: count,
          mode: about(v.picklist(['text', 'tokens']), 'tokens: without a tokenizer, random ids'),
        }),
      ),
    }),
    rows: v.array(row),
    pareto: v.nullable(v.array(paretoPoint)),
    notices: v.array(v.string()),
    changes: about(v.nullable(v.array(change)), 'against the baseline, when there was one'),
  }),
  v.title('Report of onnx-fla compare'),
);
/** What `compare --json` prints and `--report` writes as report.json. */
export type Report = v.InferOutput<typeof reportSchema>;
