import type * as Ort from 'onnxruntime-node';
import { FlaError } from '../../ops/error.js';
import { isTokenIds, numberTensor, type TensorInput, tensorInputs } from '../compare/feeds.js';
import {
  loadOnnxRuntime,
  namingFile,
  openSession,
  type SessionChoice,
} from '../compare/session.js';
import type { TokenRows } from './engine.js';

/** Numbers row by row. */
export interface NumberArray {
  readonly dims: readonly number[];
  readonly data: ArrayLike<number>;
}

/** What an encoder made of the sources of a batch. */
export interface Encoded {
  /** [B,S,hidden] */
  hidden: Ort.Tensor;
  /** 1, and 0 for padding, [B,S]; all are seen when there is none. */
  mask?: NumberArray;
  /** Places that are no padding. */
  tokens: number;
}

/** The encoder of an encoder-decoder, as in Optimum's encoder_model.onnx. */
export class Encoder {
  private constructor(
    private readonly ort: typeof Ort,
    private readonly session: Ort.InferenceSession,
    private readonly file: string,
    private readonly inputs: readonly TensorInput[],
    private readonly output: string,
  ) {}

  /** @throws FlaError `unsupported` when it has no output [B,S,hidden] */
  static async open(file: string, choice: SessionChoice = {}): Promise<Encoder> {
    const { session } = await openSession(file, choice);
    const outputs = tensorInputs(session.outputMetadata);
    const states = outputs.filter((o) => o.shape.length === 3 && /float/.test(o.type));
    const output = states.find((o) => o.name === 'last_hidden_state') ?? states[0];
    if (!output) {
      const names = outputs.map((o) => `${o.name} [${o.shape}]`).join(', ');
      throw new FlaError(
        'unsupported',
        `${file}: an encoder must have an output [B,S,hidden], received ${names}`,
      );
    }
    const inputs = tensorInputs(session.inputMetadata);
    return new Encoder(await loadOnnxRuntime(), session, file, inputs, output.name);
  }

  /**
   * Reads texts, padded on the right to one length.
   *
   * @throws FlaError `unsupported` when it takes no tokens, or texts differ in length and it has no attention_mask
   */
  async read(rows: TokenRows): Promise<Encoded> {
    const ids = this.inputs.find((i) => isTokenIds(i.name));
    if (!ids) {
      throw new FlaError(
        'unsupported',
        `${this.file}: an encoder of texts must have an input input_ids [B,S], received ${this.names()}; give what it reads as arrays`,
      );
    }
    const lengths = rows.map((row) => row.length);
    const width = Math.max(...lengths);
    const masked = this.inputs.some((i) => i.name === 'attention_mask');
    if (!masked && lengths.some((n) => n !== width)) {
      throw new FlaError(
        'unsupported',
        `${this.file}: texts of a batch must be of one length, as the encoder has no attention_mask, received ${lengths} tokens`,
      );
    }
    const dims = [rows.length, width];
    const filled = (at: (row: readonly number[], i: number) => number): NumberArray => ({
      dims,
      data: rows.flatMap((row) => Array.from({ length: width }, (_, i) => at(row, i))),
    });
    const mask = filled((row, i) => +(i < row.length));
    const arrays = new Map([[ids.name, filled((row, i) => row[i] ?? 0)]]);
    if (masked) arrays.set('attention_mask', mask);
    return { ...(await this.readArrays(arrays)), mask };
  }

  /**
   * Reads arrays by the names of inputs (input_features, pixel_values); a single one may have any name.
   *
   * @throws FlaError `invalid_argument` for arrays that are not what the inputs take
   */
  async readArrays(arrays: ReadonlyMap<string, NumberArray>): Promise<Encoded> {
    const feeds: Record<string, Ort.Tensor> = {};
    for (const input of this.inputs) {
      const array =
        arrays.get(input.name) ??
        (this.inputs.length === 1 && arrays.size === 1 ? [...arrays.values()][0] : undefined);
      if (!array || !fits(input, array)) {
        const received = [...arrays].map(([name, a]) => `${name} [${a.dims}]`).join(', ');
        throw new FlaError(
          'invalid_argument',
          `${this.file}: input '${input.name}' must be [${input.shape}], received ${received || 'nothing'}`,
        );
      }
      feeds[input.name] = numberTensor(this.ort, input.type, Array.from(array.data), array.dims);
    }
    const result = await namingFile(this.file, () => this.session.run(feeds));
    const hidden = result[this.output] as Ort.Tensor;
    const [batch, places] = hidden.dims as [number, number];
    const mask = arrays.get('attention_mask');
    if (mask?.dims[1] !== places) return { hidden, tokens: batch * places };
    return { hidden, mask, tokens: Array.from(mask.data).reduce((a, b) => a + b, 0) };
  }

  async release(): Promise<void> {
    await this.session.release();
  }

  private names(): string {
    return this.inputs.map((i) => `${i.name} [${i.shape}]`).join(', ');
  }
}

function fits({ shape }: TensorInput, { dims }: NumberArray): boolean {
  return (
    dims.length === shape.length &&
    shape.every((d, i) => typeof d !== 'number' || d < 0 || d === dims[i])
  );
}
