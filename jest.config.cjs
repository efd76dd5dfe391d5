// Unit tests import lib/ through ts-jest; tests of workers, exits and the command line run against dist/.
module.exports = {
  testEnvironment: 'node',
  testMatch: ['<rootDir>/test/**/*.test.ts'],
  testPathIgnorePatterns: ['/node_modules/', '<rootDir>/test/soak/', '<rootDir>/test/gpu/'],
  modulePathIgnorePatterns: ['<rootDir>/build/', '<rootDir>/.build/', '<rootDir>/dist/'],
  transform: { '^.+\\.ts$': ['ts-jest', { tsconfig: 'tsconfig.test.json' }] },
  maxWorkers: 2,
  testTimeout: 30000,
};
