// check-release.cjs - a tag, package.json, the lockfile and CHANGELOG.md must speak of the same version.
//
//   node scripts/check-release.cjs v1.2.3
'use strict';
const fs = require('node:fs');
const path = require('node:path');

/** What does not fit the tag, one line each. */
function checkRelease(root, tag) {
  const read = (file) => fs.readFileSync(path.join(root, file), 'utf8');
  const wanted = /^v(\d+\.\d+\.\d+(?:-[\w.]+)?)$/.exec(tag ?? '')?.[1];
  if (wanted === undefined) return [`expected a tag like v1.2.3, got "${tag ?? ''}"`];
  const problems = [];
  const { version } = JSON.parse(read('package.json'));
  if (version !== wanted) problems.push(`package.json says ${version}, the tag ${wanted}`);
  const lock = JSON.parse(read('package-lock.json')).version;
  if (lock !== wanted) problems.push(`package-lock.json says ${lock}, the tag ${wanted}`);
  const heading = /^## (.*)$/m.exec(read('CHANGELOG.md'))?.[1] ?? 'nothing';
  if (!new RegExp(`^${wanted.replaceAll('.', '\\.')} \\(\\d{4}-\\d\\d-\\d\\d\\)$`).test(heading))
    problems.push(`CHANGELOG.md begins with "${heading}", expected "${wanted} (YEAR-MONTH-DAY)"`);
  return problems;
}

module.exports = { checkRelease };
if (require.main === module) {
  const problems = checkRelease(path.resolve(__dirname, '..'), process.argv[2]);
  for (const problem of problems) console.error(`check-release: ${problem}`);
  process.exitCode = problems.length === 0 ? 0 : 1;
}
