/** What the page and its worker say to each other. */

export type Side = 'original' | 'rewritten';
export const SIDES: readonly Side[] = ['original', 'rewritten'];

/** An error as it crosses over. */
export interface Failure {
  readonly code: string;
  readonly message: string;
}

export interface Progress {
  readonly label: string;
  /** 0 to 1; undefined when nobody knows. */
  readonly part?: number;
}

/** Whether there is a GPU, in words. */
export interface DeviceFacts {
  readonly webgpu: boolean;
  readonly name: string;
  readonly threads: number;
}

/** One Softmax or fused node. */
export interface SiteFacts {
  readonly layer: number | null;
  readonly node: string;
  readonly heads: string;
  readonly mask: string | null;
  readonly cache: boolean;
  readonly rewritable: boolean;
  readonly reason: string | null;
}

/** A dimension of an input that has to be chosen. */
export interface FreeDim {
  readonly name: string;
  readonly value: number;
}

export interface ModelFacts {
  readonly name: string;
  readonly bytes: number;
  readonly nodes: number;
  readonly parameters: number;
  readonly opset: number;
  /** A language model that remembers, one that does not, or something else. */
  readonly kind: 'remembers' | 'forgets' | 'other';
  readonly tokenizer: boolean;
  readonly sites: readonly SiteFacts[];
  readonly dims: readonly FreeDim[];
  /** From the files being there to this. */
  readonly ms: number;
}

export interface RewriteRequest {
  readonly variant: 'linear' | 'retention' | 'gated-delta';
  readonly layers: readonly number[];
  readonly decay: number;
  readonly beta: number;
}

export interface RewriteFacts {
  readonly rewritten: number;
  readonly of: number;
  readonly removedNodes: number;
  readonly ms: number;
  readonly name: string;
  /** The new file; its weights stay where they are when they are in a file of their own. */
  readonly file: Uint8Array<ArrayBuffer>;
  readonly weights: readonly string[];
}

export interface GenerateRequest {
  readonly prompt: string;
  readonly tokens: number;
  readonly temperature: number;
  readonly seed: number;
}

/** How one side stands while it writes. */
export interface GenerateEvent {
  readonly side: Side;
  /** New text, when there is some. */
  readonly text?: string;
  readonly promptTokens: number;
  readonly prefillMs?: number;
  readonly tokens: number;
  /** Of the last tokens. */
  readonly tokenMs?: number;
  readonly stateBytes: number;
  readonly gpuBytes?: number;
  readonly status: string;
}

export interface LengthRequest {
  readonly longest: number;
}

/** What one side costs at one length. */
export interface LengthPoint {
  readonly side: Side;
  readonly tokens: number;
  /** Reading everything up to here. */
  readonly readMs: number;
  readonly tokenMs: number;
  readonly stateBytes: number;
  /** The most since the length before; undefined without a GPU. */
  readonly gpuBytes?: number;
}

export type LengthEvent = { readonly point: LengthPoint } | { readonly progress: Progress };

export interface RunRequest {
  readonly dims: Readonly<Record<string, number>>;
}

/** Both models on the same random input. */
export interface RunFacts {
  readonly sides: readonly {
    readonly side: Side;
    readonly ms: number;
    readonly gpuBytes?: number;
  }[];
  readonly outputs: readonly {
    readonly name: string;
    readonly shape: string;
    readonly difference: number;
  }[];
}

/** A file that the visitor chose. */
export interface GivenFile {
  readonly name: string;
  readonly bytes: Uint8Array;
}

/** Methods of the worker: arguments, what is told on the way, and the result. */
export interface Methods {
  device: { args: undefined; event: never; result: DeviceFacts };
  open: { args: readonly GivenFile[]; event: Progress; result: ModelFacts };
  sample: { args: undefined; event: Progress; result: ModelFacts };
  rewrite: { args: RewriteRequest; event: Progress; result: RewriteFacts };
  generate: { args: GenerateRequest; event: GenerateEvent; result: undefined };
  length: { args: LengthRequest; event: LengthEvent; result: undefined };
  run: { args: RunRequest; event: Progress; result: RunFacts };
}

export type Method = keyof Methods;

export type ToWorker =
  | { readonly id: number; readonly method: Method; readonly args: unknown }
  | { readonly id: number; readonly stop: true };

export type FromWorker =
  | { readonly id: number; readonly event: unknown }
  | { readonly id: number; readonly result: unknown }
  | { readonly id: number; readonly failure: Failure };
