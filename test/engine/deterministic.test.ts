// What `deterministic: true` promises, on the real model: the bits of a request do not depend on its company.
import { BUNDLED_MODEL, type LoadOptions, loadModel } from '../../lib/engine';
import { LatentModel } from '../../lib/model';
import { bundledBook, companyLoad } from './company-load';

const REQUESTS = 60;
const open = (options: LoadOptions) => loadModel(undefined, { device: 'cpu', threads: 2, ...options });

const FP8: LoadOptions = { dtype: 'fp8', activationDtype: 'fp8' };

test.each([
  ['', {}],
  [', fp8 weights and activations', FP8],
])(
  'deterministic%s: requests in company have the bits that they have alone',
  async (_, types) => {
    const figures = await companyLoad((options) => open({ ...types, ...options }), bundledBook(), REQUESTS, true);
    console.log(JSON.stringify(figures));
    expect(figures).toMatchObject({ requests: REQUESTS, otherTokens: 0, otherBits: 0 });
    // otherwise there was no company to speak of
    expect(figures.cachedTokens).toBeGreaterThan(10 * REQUESTS);
    expect(figures.preemptions).toBeGreaterThan(REQUESTS / 10);
  },
  120_000,
);

test('control: without the option some have others', async () => {
  const figures = await companyLoad(open, bundledBook(), REQUESTS, false);
  console.log(JSON.stringify(figures));
  expect(figures.otherBits).toBeGreaterThan(0);
}, 120_000);

test('an attention form that cannot keep the promise is refused, and so is what is not a boolean', async () => {
  const options = { device: 'cpu', deterministic: true, attention: 'expanded' } as const;
  await expect(LatentModel.load(BUNDLED_MODEL, options)).rejects.toMatchObject({ code: 'ERR_INVALID_ARG' });
  await expect(open({ deterministic: 1 as never })).rejects.toMatchObject({ code: 'ERR_INVALID_ARG' });
});
