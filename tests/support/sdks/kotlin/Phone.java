import com.segment.analytics.kotlin.core.compat.ConfigurationBuilder;
import com.segment.analytics.kotlin.core.compat.JavaAnalytics;
import java.util.Map;

/** analytics-kotlin, used as a phone uses it, but for many users. Environment: see python_client.py. */
public class Phone {
    public static void main(String[] none) throws Exception {
        Map<String, String> told = System.getenv();
        String host = told.get("HOST").replaceFirst("^https://", "") + "/v1";
        int users = Integer.parseInt(told.get("USERS")), events = Integer.parseInt(told.get("EVENTS"));
        long pause = (long) (Double.parseDouble(told.get("SECONDS")) * 1000 / users);
        JavaAnalytics sdk = new JavaAnalytics(new ConfigurationBuilder(told.get("WRITE_KEY")).setApplication("none")
            .setApiHost(host).setCdnHost(host).setFlushAt(50).setFlushInterval(1).build());
        for (int n = 0; n < users; n++) {
            sdk.identify(told.get("PREFIX") + n, Map.of("plan", "free"));
            Thread.sleep(Math.max(pause, 100));
            sdk.screen("Start", Map.of("shown", "yes"));
            for (int k = 0; k < events; k++) sdk.track("City Searched", Map.of("city", "Dallas, TX"));
            Thread.sleep(1500); // events get the user of the moment they are processed at, not of the call
        }
        for (int quiet = 0; quiet < 3; quiet = sdk.getAnalytics().pendingUploads().isEmpty() ? quiet + 1 : 0) {
            sdk.flush();
            Thread.sleep(700);
        }
        System.out.println(0);
        System.exit(0);
    }
}
