/** Client of codex-authd. */
export { ApiError, pages, value, type Answer, type ErrorBody, type Page } from "./answers.js";
export { connect, type Client, type Options } from "./connection.js";
export { Document, document } from "./document.js";
export type { components, operations, paths } from "./schema.js";
