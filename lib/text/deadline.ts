// deadline.ts - runs synchronous work under a time limit. The patterns of a tokenizer.json are regular expressions from
// outside, and a regular expression can be written to run for ever; only V8's own termination reaches into one.
import vm from 'node:vm';

const jobs: (() => void)[] = [];
let script: vm.Script | undefined;
let context: vm.Context | undefined;

/**
 * Runs `work` on this thread, for at most `milliseconds`.
 * @returns false when the time ran out (whatever `work` had changed stays changed); errors of `work` pass through
 */
export function runWithin(milliseconds: number, work: () => void): boolean {
  script ??= new vm.Script('run()');
  context ??= vm.createContext({ run: () => jobs.at(-1)?.() });
  jobs.push(work);
  try {
    script.runInContext(context, { timeout: milliseconds });
    return true;
  } catch (error) {
    if ((error as { code?: unknown } | null)?.code === 'ERR_SCRIPT_EXECUTION_TIMEOUT') return false;
    throw error;
  } finally {
    jobs.pop();
  }
}
