import com.azure.identity.ManagedIdentityCredential;
import com.azure.identity.ManagedIdentityCredentialBuilder;
import com.azure.security.keyvault.secrets.SecretClient;
import com.azure.security.keyvault.secrets.SecretClientBuilder;

/** Reads one secret with azure-identity and azure-security-keyvault-secrets, and says how that went as one line of JSON. */
public final class Reader {
    private Reader() {
    }

    /** Runs once; everything it needs to know is in the environment. */
    public static void main(String[] arguments) {
        String said;
        try {
            ManagedIdentityCredential credential = new ManagedIdentityCredentialBuilder().build();
            SecretClient client = new SecretClientBuilder()
                .vaultUrl("https://" + System.getenv("AZURE_KEYVAULT_NAME") + ".vault.azure.net")
                .credential(credential)
                .buildClient();
            String value = client.getSecret(System.getenv("AZURE_KEYVAULT_SECRET_NAME")).getValue();
            said = "{\"ok\": true, \"secret\": " + quoted(value) + "}";
        } catch (RuntimeException error) {
            said = "{\"ok\": false, \"type\": " + quoted(error.getClass().getName())
                + ", \"message\": " + quoted(String.valueOf(error.getMessage())) + "}";
        }
        System.out.println(said);
        System.exit(0); // netty's threads would linger
    }

    private static String quoted(String text) {
        StringBuilder out = new StringBuilder("\"");
        for (char letter : text.toCharArray()) {
            if (letter == '"' || letter == '\\') {
                out.append('\\').append(letter);
            } else if (letter < ' ') {
                out.append(String.format("\\u%04x", (int) letter));
            } else {
                out.append(letter);
            }
        }
        return out.append('"').toString();
    }
}
