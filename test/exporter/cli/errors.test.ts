import { execFileSync } from 'node:child_process';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { afterAll, describe, expect, test } from 'vitest';
import {
  buildModel,
  type Model,
  makeNode,
  makeTensor,
  modelBytes,
  saveModel,
} from '../../../exporter/index.js';
import { OCR_RECOGNISER, TINYLM } from '../../support/models.js';
import { runCli } from './run_cli.js';

const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'fla-cli-'));
afterAll(() => fs.rmSync(folder, { recursive: true }));

const at = (name: string) => path.join(folder, name);
function write(name: string, bytes: Uint8Array | string): string {
  fs.writeFileSync(at(name), bytes);
  return at(name);
}
function writeModel(name: string, model: Model): string {
  saveModel(model, at(name));
  return at(name);
}

/** A pipe that nobody writes to: who opens it waits for ever. */
function pipe(name: string): string {
  fs.rmSync(at(name), { force: true });
  execFileSync('mkfifo', [at(name)]);
  return at(name);
}
function link(name: string, to: string): string {
  fs.rmSync(at(name), { force: true });
  fs.symlinkSync(to, at(name));
  return at(name);
}
/** A model whose weight lies in another file. */
function withData(name: string, location: string): string {
  const model = softmaxOf([
    makeNode('MatMul', ['x', 'w'], ['s']),
    makeNode('Softmax', ['s'], ['y'], { axis: -1 }),
  ]);
  const w = model.graph.initializer('w')!;
  delete w.rawData;
  Object.assign(w, { dataLocation: 1, externalData: [{ key: 'location', value: location }] });
  return write(name, modelBytes(model));
}

const softmaxOf = (nodes: Parameters<typeof buildModel>[0]['nodes']) =>
  buildModel({
    inputs: { x: ['float32', ['n', 4]] },
    outputs: { y: ['float32', ['n', 4]] },
    nodes,
    initializers: [makeTensor('w', 'float32', [4, 4], new Array(16).fill(0.1))],
  });

/** Files that are no models, and what is said of them. */
const malformed: Record<string, { make: () => string; message: RegExp }> = {
  'a truncated file': {
    make: () => write('truncated.onnx', fs.readFileSync(OCR_RECOGNISER).subarray(0, 3_000_001)),
    message: /truncated\.onnx: not a readable ONNX model: .*byte \d+ of 3000001/,
  },
  'wrong wire types': {
    make: () => write('wire.onnx', Uint8Array.of(0x08, 7, 0x38, 5)), // field 7, the graph, as a number
    message: /wire\.onnx: not an ONNX model: it has no graph/,
  },
  'no protobuf at all': {
    make: () => write('text.onnx', 'this is no model\n'),
    message: /text\.onnx: not a readable ONNX model: .*byte \d+ of 17/,
  },
  'an empty file': {
    make: () => write('empty.onnx', ''),
    message: /empty\.onnx: not an ONNX model/,
  },
  'a missing input': {
    make: () =>
      writeModel(
        'missing.onnx',
        softmaxOf([makeNode('Softmax', ['nowhere'], ['y'], { axis: -1 })]),
      ),
    message: /missing\.onnx: .*node 'y' \(Softmax\) reads 'nowhere'/,
  },
  'a cycle': {
    make: () =>
      writeModel(
        'cycle.onnx',
        softmaxOf([
          makeNode('Add', ['x', 'b'], ['a']),
          makeNode('Softmax', ['a'], ['b'], { axis: -1 }),
          makeNode('MatMul', ['b', 'w'], ['y']),
        ]),
      ),
    message: /cycle\.onnx: .*node 'a' \(Add\) depends on its own output/,
  },
  'absent external data': {
    make: () => {
      fs.copyFileSync(TINYLM.model, at('external.onnx'));
      return at('external.onnx');
    },
    message: /external data 'weights\.fp16\.bin': cannot be read/,
  },
  'a file that is not there': {
    make: () => at('nothing.onnx'),
    message: /nothing\.onnx: cannot be read: no such file/,
  },
  'a folder': {
    make: () => folder,
    message: /cannot be read: must be a regular file, received a folder/,
  },
  'a pipe': {
    make: () => pipe('pipe.onnx'),
    message: /pipe\.onnx: cannot be read: must be a regular file, received a pipe/,
  },
  'a link to a pipe': {
    make: () => link('link.onnx', pipe('linked.onnx')),
    message: /link\.onnx: cannot be read: must be a regular file, received a pipe/,
  },
  'a device': {
    make: () => '/dev/zero',
    message: /\/dev\/zero: cannot be read: must be a regular file, received a device/,
  },
  'external data in a pipe': {
    make: () => withData('in_pipe.onnx', path.basename(pipe('pipe.bin'))),
    message: /external data 'pipe\.bin': must be a regular file, received a pipe/,
  },
  'external data in a folder': {
    make: () => {
      fs.mkdirSync(at('sub'), { recursive: true });
      return withData('in_folder.onnx', 'sub');
    },
    message: /external data 'sub': must be a regular file, received a folder/,
  },
  'external data in a device': {
    make: () => withData('in_device.onnx', path.basename(link('zero.bin', '/dev/zero'))),
    message: /external data 'zero\.bin': must be a relative path inside the model's folder/,
  },
};

/** One clear line on stderr, nothing on stdout, exit code 1. */
async function expectRefusal(args: string[], message: RegExp): Promise<void> {
  const { code, stdout, stderr } = await runCli(...args);
  expect(stderr).toMatch(/^onnx-fla: [^\n]+\n$/);
  expect(stderr).toMatch(message);
  expect(stderr).not.toMatch(/\n\s+at /);
  expect(stdout).toBe('');
  expect(code).toBe(1);
}

describe('malformed models', () => {
  test.each(Object.keys(malformed))('rewrite refuses %s and leaves no file', async (what) => {
    const { make, message } = malformed[what]!;
    const file = make();
    const before = fs.readdirSync(folder);
    await expectRefusal(['rewrite', file, '-o', at('out.onnx')], message);
    expect(fs.readdirSync(folder)).toEqual(before);
  });
  test.each(['a truncated file', 'a cycle', 'a missing input', 'a folder', 'a pipe', 'a device'])(
    'inspect refuses %s',
    async (what) => {
      const { make, message } = malformed[what]!;
      await expectRefusal(['inspect', make()], message);
    },
  );
  test('compare refuses weights of the wrong shape, naming the model', async () => {
    const good = writeModel('good.onnx', softmaxOf([makeNode('MatMul', ['x', 'w'], ['y'])]));
    const bad = writeModel('bad.onnx', softmaxOf([makeNode('MatMul', ['w', 'x'], ['y'])]));
    await expectRefusal(['compare', good, bad, '--dim', 'n=3'], /bad\.onnx/);
  });
  test('compare refuses absent external data', async () => {
    await expectRefusal(
      ['compare', TINYLM.model, malformed['absent external data']!.make()],
      /weights\.fp16\.bin/,
    );
  });
});

describe('files and options', () => {
  const model = TINYLM.model;
  const weights = path.join(TINYLM.folder, 'weights.fp16.bin');
  test.each<[string, string[], RegExp]>([
    ['an unknown command', ['convert', model], /unknown command 'convert'/],
    ['an unknown option', ['inspect', model, '--colour'], /unknown option '--colour'/],
    ['a missing argument', ['inspect'], /missing required argument 'model'/],
    [
      'a variant that is not there',
      ['rewrite', model, '--variant', 'mamba'],
      /mamba.*Allowed choices/,
    ],
    [
      'memory tokens of another variant',
      ['rewrite', model, '--memory-tokens', '4', '-o', at('x.onnx')],
      /--memory-tokens is for variant rmt, received linear/,
    ],
    [
      'rmt without segments',
      ['rewrite', model, '--variant', 'rmt', '--memory-tokens', '4', '-o', at('x.onnx')],
      /give the number of memory vectors with --memory-tokens, and the length of segments with --segment/,
    ],
    [
      'layers for rmt',
      [
        'rewrite',
        model,
        '--variant',
        'rmt',
        '--memory-tokens',
        '4',
        '--segment',
        '8',
        '--layers',
        '1',
        '--dry-run',
      ],
      /--layers is not for variant rmt/,
    ],
    [
      'a memory file that is none',
      [
        'rewrite',
        model,
        '--variant',
        'rmt',
        '--memory-tokens',
        '4',
        '--segment',
        '8',
        '--memory',
        TINYLM.tokenizer,
        '--dry-run',
      ],
      /tokenizer\.json: must be a safetensors file/,
    ],
    ['layers that are none', ['rewrite', model, '--layers', '1-x'], /layers like 0,2-3/],
    ['layers that run backwards', ['rewrite', model, '--layers', '3-1'], /3-1 is no range/],
    ['no output', ['rewrite', model], /-o, or --dry-run/],
    [
      'an output folder that is missing',
      ['rewrite', model, '-o', at('no/out.onnx')],
      /folder .*no does not exist/,
    ],
    ['an output that is a folder', ['rewrite', model, '-o', folder], /is a folder/],
    ['a device as output', ['rewrite', model, '-o', '/dev/full'], /is a device/],
    ['the input as output', ['rewrite', model, '-o', model], /must be another file/],
    ['the weights as output', ['rewrite', model, '-o', weights], /must be another file/],
    [
      'a decay that the variant has no use for',
      ['rewrite', model, '-o', at('o.onnx'), '--decay', '-0.1,-0.1'],
      /decay is for variant retention, received linear/,
    ],
    [
      'gates that are not there',
      ['rewrite', model, '-o', at('o.onnx'), '--gates', at('g.json')],
      /g\.json: cannot be read: no such file/,
    ],
    ['a text without tokenizer', ['compare', model, model, '--text', TINYLM.text], /go together/],
    [
      'a condition that is none',
      ['compare', model, model, '--fail-if', 'kl=3'],
      /fail-if: condition must be like kl>0\.1 or kl>\+5%, received kl=3/,
    ],
    [
      'a condition on something unknown',
      ['compare', model, model, '--fail-if', 'beauty<1'],
      /fail-if: condition must name one of kl, .*recall\.passkey.*, received beauty/,
    ],
    [
      'a condition on what is not measured',
      ['compare', model, model, '--fail-if', 'kl>0.1'],
      /fail-if: kl>0\.1 needs a text \(--text\)/,
    ],
    [
      'a relative condition without baseline',
      ['compare', model, model, '--fail-if', 'max_abs>+5%'],
      /fail-if: max_abs>\+5% needs a baseline/,
    ],
    [
      'a baseline that is none',
      ['compare', model, model, '--baseline', path.join(TINYLM.folder, 'config.json')],
      /baseline: .*config\.json: is no report: /,
    ],
    [
      'a task that is none',
      ['compare', model, model, '--tasks', 'chess', '--tokenizer', TINYLM.tokenizer],
      /task must be one of passkey, .*, received chess/,
    ],
    [
      'a task that needs words, without a tokenizer',
      ['compare', model, model, '--tasks', 'facts'],
      /task facts needs a tokenizer, received none/,
    ],
    [
      'a report where a file is',
      ['compare', model, model, '--report', TINYLM.text],
      /val\.txt: cannot be written: is no folder/,
    ],
    [
      'a Pareto table that is none',
      ['compare', model, model, '--pareto', TINYLM.text],
      /val\.txt: is no Pareto table/,
    ],
    [
      'tasks for a model that reads no tokens',
      ['compare', OCR_RECOGNISER, OCR_RECOGNISER, '--tasks', 'mqar', '--length', '64'],
      /must be a language model for tasks/,
    ],
    [
      'a text that is not there',
      ['compare', model, model, '--text', at('t.txt'), '--tokenizer', TINYLM.tokenizer],
      /t\.txt: cannot be read: no such file/,
    ],
    [
      'a tokenizer that is no JSON',
      ['compare', model, model, '--text', TINYLM.text, '--tokenizer', TINYLM.text],
      /val\.txt: is no JSON/,
    ],
    [
      'a tokenizer that is another JSON',
      ['generate', model, '--prompt', 'a', '--tokenizer', path.join(TINYLM.folder, 'config.json')],
      /config\.json: is no tokenizer\.json/,
    ],
    [
      'lengths that are none',
      ['compare', model, model, '--lengths', '128,0'],
      /expected a positive integer/,
    ],
    [
      'a dimension without length',
      ['compare', model, model, '--dim', 'width'],
      /expected name=length/,
    ],
    [
      'a dimension that no input has',
      ['compare', model, model, '--dim', 'width=3'],
      /dim must name a dimension of the inputs \(.*sequence.*\), received width/,
    ],
    ['no tokenizer', ['generate', model, '--prompt', 'a'], /required option '--tokenizer <file>'/],
    [
      'no prompt',
      ['generate', model, '--tokenizer', TINYLM.tokenizer],
      /--prompt and --prompt-file/,
    ],
    [
      'an empty prompt',
      ['generate', model, '--tokenizer', TINYLM.tokenizer, '--prompt', ''],
      /prompt is empty/,
    ],
    [
      'a model that writes no text',
      ['generate', OCR_RECOGNISER, '--tokenizer', TINYLM.tokenizer, '--prompt', 'a'],
      /must be a language model/,
    ],
  ])('%s is refused', async (_, args, message) => {
    const before = fs.readdirSync(TINYLM.folder);
    await expectRefusal(args, message);
    expect(fs.readdirSync(TINYLM.folder)).toEqual(before);
  });

  test('--verbose shows where an error comes from', async () => {
    const { code, stderr } = await runCli('inspect', at('nothing.onnx'), '--verbose');
    expect(code).toBe(1);
    expect(stderr).toMatch(/^onnx-fla: [^\n]+\n/);
    expect(stderr).toMatch(/\n\s+at /);
  });
});
