import type * as Ort from 'onnxruntime-node';
import { FlaError } from '../../ops/error.js';
import { TOLD } from '../../runtime/common/row_lengths.js';
import { isTokenIds, type TensorInput, tensorInputs } from '../compare/feeds.js';
import { isCrossCache, type StateNames, statePairs } from './state_pairs.js';

/** How a model remembers earlier tokens: not at all, in a cache that grows, or in a state that does not. */
export type Memory = 'none' | 'cache' | 'state';

/** Which inputs and outputs play which part in a causal language model. */
export interface TokenInterface {
  memory: Memory;
  ids: TensorInput;
  mask: TensorInput | undefined;
  positions: TensorInput | undefined;
  /** What else tells of lengths: seqlens_k, total_sequence_length and their like. */
  lengths: TensorInput[];
  /** Is the mask as long as everything seen so far, rather than as the new tokens? */
  maskCoversPast: boolean;
  state: TensorInput[];
  pairs: StateNames[];
  /** Caches of an encoder's keys and values, which stay as the first call makes them. */
  cross: TensorInput[];
  /** `use_cache_branch` of a merged decoder, which is true from the second call on. */
  branch: TensorInput | undefined;
  /** What an encoder gives: encoder_hidden_states [B,S,hidden] and encoder_attention_mask [B,S]. */
  encoded: { hidden?: TensorInput; mask?: TensorInput };
  logits: string;
}

export interface InterfaceOptions {
  /** The model says that its mask covers new tokens only. */
  maskIsCurrent?: boolean;
  /** An encoder is there for it. */
  encoder?: boolean;
}

/** What describes a session's inputs and outputs. */
export type Described = Pick<
  Ort.InferenceSession,
  'inputNames' | 'outputNames' | 'inputMetadata' | 'outputMetadata'
>;

/** Is it a model that `LanguageModel` can drive? */
export function isLanguageModel(session: Described): boolean {
  try {
    tokenInterface(session);
    return true;
  } catch {
    return false;
  }
}

/** @throws FlaError `unsupported` when the model is no language model of the known form, or has an encoder that is not there */
export function tokenInterface(
  session: Described,
  { maskIsCurrent = false, encoder = false }: InterfaceOptions = {},
): TokenInterface {
  const inputs = tensorInputs(session.inputMetadata);
  const outputs = tensorInputs(session.outputMetadata);
  const cross = inputs.filter((i) => isCrossCache(i.name));
  const own = session.inputNames.filter((name) => !isCrossCache(name));
  const pairs = statePairs(own, session.outputNames);
  const pastNames = new Set(pairs.map((p) => p.past));
  const state = inputs.filter((i) => pastNames.has(i.name));
  const hidden = inputs.find((i) => /^encoder_(hidden_states|outputs)$/.test(i.name));
  const sourceMask = inputs.find((i) => i.name === 'encoder_attention_mask');
  const encoded = { ...(hidden && { hidden }), ...(sourceMask && { mask: sourceMask }) };
  const branch = inputs.find((i) => /use_cache/i.test(i.name) && i.type === 'bool');
  const integers = inputs.filter(
    (i) => /^u?int(32|64)$/.test(i.type) && i.shape.length === 2 && i !== sourceMask,
  );
  const ids = integers.find((i) => isTokenIds(i.name.replace(/^decoder_/i, '')));
  const mask = integers.find((i) => /mask/i.test(i.name));
  const positions = integers.find((i) => /position/i.test(i.name));
  const logits = outputs.find((o) => o.shape.length === 3 && /logits/i.test(o.name));
  if (!ids || !logits) {
    throw new FlaError(
      'unsupported',
      'model must be a language model with inputs input_ids [B,T] and output logits [B,T,V], ' +
        `received inputs ${list(inputs)} and outputs ${list(outputs)}`,
    );
  }
  const fromEncoder = [...cross, ...Object.values(encoded)];
  if (!encoder && fromEncoder.length > 0) {
    throw new FlaError(
      'unsupported',
      `model needs its encoder, as it has the inputs ${list(fromEncoder)}`,
    );
  }
  if (encoder && fromEncoder.length === 0) {
    throw new FlaError(
      'unsupported',
      `model must have inputs that an encoder gives, such as encoder_hidden_states, received ${list(inputs)}`,
    );
  }
  const lengths = inputs.filter((i) => TOLD.has(i.name) && i !== mask && i !== positions);
  const known = new Set([ids, mask, positions, branch, ...lengths, ...state, ...fromEncoder]);
  const others = inputs.filter((i) => !known.has(i));
  if (others.length > 0) {
    throw new FlaError(
      'unsupported',
      `model has inputs that no value is known for: ${list(others)}`,
    );
  }
  const grows = state.some((i) => i.shape.some((d, axis) => axis > 0 && typeof d === 'string'));
  return {
    memory: state.length === 0 ? 'none' : grows ? 'cache' : 'state',
    ids,
    mask,
    positions,
    lengths,
    maskCoversPast: !maskIsCurrent && mask !== undefined,
    ...{ state, pairs, cross, branch, encoded },
    logits: logits.name,
  };
}

function list(values: readonly TensorInput[]): string {
  return values.map((v) => `${v.name} [${v.shape.join(',')}]`).join(', ') || 'none';
}
