import com.azure.core.credential.TokenCredential;
import com.azure.core.credential.TokenRequestContext;
import com.azure.identity.DefaultAzureCredentialBuilder;
import com.azure.identity.ManagedIdentityCredentialBuilder;

/** Asks for a token with ManagedIdentityCredential and DefaultAzureCredential: see ../../../../managed/managed.py. */
public final class Managed {
    private Managed() {}

    public static void main(String[] arguments) {
        String selector = System.getenv("SELECTOR");
        ManagedIdentityCredentialBuilder builder = new ManagedIdentityCredentialBuilder();
        if (selector != null) {
            builder.clientId(selector);
        }
        String managed = answer(builder.build());
        String chain = answer(new DefaultAzureCredentialBuilder().build());
        System.out.println("{\"managed\": " + managed + ", \"default\": " + chain + "}");
        System.exit(0);
    }

    private static String answer(TokenCredential credential) {
        try {
            TokenRequestContext scopes = new TokenRequestContext().addScopes("https://vault.azure.net/.default");
            return field("token", credential.getToken(scopes).block().getToken());
        } catch (RuntimeException error) {
            return field("error", error.toString());
        }
    }

    private static String field(String name, String value) {
        String text = value.replace("\\", "\\\\").replace("\"", "'").replaceAll("[\\x00-\\x1f]", " ");
        return "{\"" + name + "\": \"" + text + "\"}";
    }
}
