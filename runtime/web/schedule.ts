import type { Call, Part, Program } from './program.js';

/** A step as it is carried out for certain outputs of the model. */
export type ScheduledStep = (
  | { readonly kind: 'piece'; readonly part: Part }
  | { readonly kind: 'calls'; readonly calls: readonly Call[] }
) & {
  /** Those of its outputs that something needs. */
  readonly outputs: ReadonlySet<string>;
  /** Values that nothing reads after it. */
  readonly done: readonly string[];
};

export interface Schedule {
  readonly steps: readonly ScheduledStep[];
  /** Inputs of the model that have to be given. */
  readonly inputs: readonly string[];
}

/** What has to be done for these outputs, and when values are done with. */
export function schedule(program: Program, outputs: Iterable<string>): Schedule {
  const needed = new Set(outputs);
  const steps: ScheduledStep[] = [];
  for (const step of program.steps.toReversed()) {
    const wanted = new Set(step.outputs.filter((value) => needed.has(value)));
    if (wanted.size === 0) continue;
    const wants = ({ outputs }: Call) => Object.values(outputs).some((value) => wanted.has(value));
    const calls = step.kind === 'calls' ? step.calls.filter(wants) : [];
    const reads =
      step.kind === 'calls' ? calls.flatMap(({ inputs }) => Object.values(inputs)) : step.inputs;
    // Steps are gone through from the last one on: what nothing has asked for yet is read here for the last time.
    const done = [...new Set(reads)].filter((value) => !needed.has(value));
    for (const value of reads) needed.add(value);
    const common = { outputs: wanted, done };
    if (step.kind === 'piece') steps.push({ kind: 'piece', part: step.part, ...common });
    else steps.push({ kind: 'calls', calls, ...common });
  }
  return { steps: steps.reverse(), inputs: program.inputs.filter((name) => needed.has(name)) };
}
