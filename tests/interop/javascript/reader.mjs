// Reads one secret with @azure/identity and @azure/keyvault-secrets, and says how that went as one line of JSON.
import { readFileSync } from "node:fs";

import { ManagedIdentityCredential } from "@azure/identity";
import { SecretClient } from "@azure/keyvault-secrets";

const versions = Object.fromEntries(
  ["@azure/identity", "@azure/keyvault-secrets"].map((name) => [
    name,
    JSON.parse(readFileSync(`${process.cwd()}/node_modules/${name}/package.json`, "utf8")).version,
  ]),
);
const vault = `https://${process.env.AZURE_KEYVAULT_NAME}.vault.azure.net`;
let said;
try {
  const client = new SecretClient(vault, new ManagedIdentityCredential());
  const secret = await client.getSecret(process.env.AZURE_KEYVAULT_SECRET_NAME);
  said = { ok: true, secret: secret.value };
} catch (error) {
  said = { ok: false, type: error.name, message: error.message };
}
console.log(JSON.stringify({ ...said, versions }));
