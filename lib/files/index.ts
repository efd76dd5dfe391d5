// files/index.ts - the file system as promises that a thread may die in.
//
// node:fs/promises makes its request object in C++ and aborts the whole process where that fails, and it fails when the
// thread is being terminated at that moment (FSReqPromise::New gives null, AsyncDestCall asserts; src/node_file-inl.h of
// Node 20, seen once in some thousand terminations of a loading model). The callbacks of node:fs get theirs from
// JavaScript. So the library, which users run in threads of their own, reads and writes files through these.
import * as fs from 'node:fs';
import { promisify } from 'node:util';

export const close = promisify(fs.close);
export const fstat = promisify(fs.fstat);
export const fsync = promisify(fs.fsync);
export const ftruncate = promisify(fs.ftruncate);
export const lstat = promisify(fs.lstat);
export const mkdir = promisify(fs.mkdir);
export const open = promisify(fs.open);
export const read = promisify(fs.read);
export const readdir = promisify(fs.readdir);
export const readFile = promisify(fs.readFile);
export const readlink = promisify(fs.readlink);
/** By the system's own call, as `fs.promises.realpath` does it. */
export const realpath = promisify(fs.realpath.native);
export const rename = promisify(fs.rename);
export const rm = promisify(fs.rm);
export const stat = promisify(fs.stat);
export const statfs = promisify(fs.statfs);
export const symlink = promisify(fs.symlink);
export const writeFile = promisify(fs.writeFile);

const write = promisify(fs.write);

/** Writes all bytes at the descriptor's position, however few the system takes at a time. */
export async function writeAll(fd: number, bytes: Uint8Array): Promise<void> {
  for (let done = 0; done < bytes.length; ) {
    const { bytesWritten } = await write(fd, bytes, done, bytes.length - done);
    done += bytesWritten;
  }
}

/** Closes a descriptor where errors of close are of no use to anyone. */
export async function closeQuietly(fd: number): Promise<void> {
  await close(fd).catch(() => {});
}
